"""Check that the teacher gets images as in its training: a wrong mean, std or colour order raises no error.

The teacher's confidence is no evidence: fed with values from 0 to 255 a network is *certain* of everything. Its batch
norms store the statistics of their training inputs; the likely setting is the one that comes nearest to these. Measured
in docs/models.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kd3.domain_shift.batch_norms import BatchNormWatch, summed_up
from kd3.domain_shift.first_layers import FirstLayers, first_layers
from kd3.models.preprocessing import Normalisation
from kd3.models.teacher import Teacher

# Minimum ratio of batch norm distances for a warning. Wrong settings had at least 3.1 on photographs, right ones at
# most 1.7 on any pool.
CLEARLY_BETTER = 2.5
# The same for the colour order, which changes less: wrong ones had at least 1.27 on photographs, right ones at most
# 1.02 on any pool, and at most 1.16 on images of one class.
COLOURS_BETTER = 1.2
COLLAPSED_CLASSES = 1.5  # effective classes of many images under a grossly wrong setting
COLLAPSED_CONFIDENCE = 0.99
ALTERNATIVES: dict[str, tuple[Sequence[float], Sequence[float]]] = {
    "ImageNet's mean and std": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR's mean and std": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "mean and std 0.5": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "values from 0 to 1 (mean 0, std 1)": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "values from 0 to 255 (mean 0, std 1/255)": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}
# One value each: for teachers of grey images.
GREY_ALTERNATIVES: dict[str, tuple[Sequence[float], Sequence[float]]] = {
    "MNIST's mean and std": ((0.1307,), (0.3081,)),
    **{name: (mean[:1], std[:1]) for name, (mean, std) in ALTERNATIVES.items() if len({*mean, *std}) <= 2},
}
COLOURS = "the colours in the order B, G, R"


@dataclass(frozen=True)
class Reading:
    """Statistics of a teacher on images under one setting."""

    setting: str
    distance: float | None  # of the batch norms, as in `kd3 shift`; None without any
    confidence: float  # mean, in [0, 1]
    effective_classes: float  # exp of the entropy of the mean prediction


@dataclass(frozen=True)
class NormalisationCheck:
    """Comparison of a teacher's own setting with others."""

    given: Reading
    others: list[Reading]
    network: FirstLayers | None = None  # whether it is the trained one

    @property
    def warning(self) -> str | None:
        """Warning if another setting is clearly likelier, or if the setting or the network must be wrong."""
        # In another network other settings may fit better by chance; so test the network first.
        if self.network is not None and self.network.warning:
            return self.network.warning
        given = self.given
        known = [(other, other.distance) for other in self.others if other.distance is not None]
        if given.distance is not None and known:
            best, distance = min(known, key=lambda pair: pair[1])
            times = given.distance / max(distance, 1e-12)
            if best.setting != COLOURS and times >= CLEARLY_BETTER:
                return (
                    f"the teacher's batch norms fit these images {times:.1f} times as well with {best.setting} as with "
                    f"the mean and std that are given: they are probably wrong"
                )
            swapped = next((value for other, value in known if other.setting == COLOURS), None)
            if swapped is not None and swapped > 0 and given.distance / swapped >= COLOURS_BETTER:
                return (
                    f"the teacher's batch norms fit these images {given.distance / swapped:.2f} times as well with "
                    f"{COLOURS}: if it was trained on images from OpenCV, swap the input channels of its first layer"
                )
        if given.effective_classes < COLLAPSED_CLASSES and given.confidence > COLLAPSED_CONFIDENCE:
            return (
                f"the teacher sees one class in nearly all images and is {100 * given.confidence:.0f} % sure of it: "
                f"mean or std are probably of another scale than RGB in [0, 1]"
            )
        return None


def check_normalisation(teacher: Teacher, images: Tensor) -> NormalisationCheck:
    """Run a teacher on images under its own mean and std, and under other common ones.

    Costs eight forward passes. It cannot distinguish nearly equal settings (CIFAR's and ImageNet's), nor the colour
    order of grey pictures. Without batch norms it detects only gross errors.

    Shapes: uint8 RGB (B, 3, S, S), on the teacher's device.
    """
    own = teacher.normalise
    given = _read(teacher, own(images), "as given")
    is_grey = own.channels == 1
    others = [] if is_grey else [_read(teacher, own(images.flip(1)), COLOURS)]
    for setting, (mean, std) in (GREY_ALTERNATIVES if is_grey else ALTERNATIVES).items():
        if (tuple(mean), tuple(std)) != (own.mean, own.std):
            others.append(_read(teacher, Normalisation(mean, std).to(images.device)(images), setting))
    return NormalisationCheck(given, others, first_layers(teacher, own(images)))


def _read(teacher: Teacher, normalised: Tensor, setting: str) -> Reading:
    watch = BatchNormWatch(teacher.module)
    with watch.watching():
        probabilities = teacher(normalised).float().softmax(1)
    mean = probabilities.mean(0)
    entropy = -(mean * mean.clamp_min(1e-12).log()).sum()
    shift = summed_up(watch.layers())
    return Reading(
        setting=setting,
        distance=None if shift is None else shift.mean,
        confidence=float(probabilities.max(1).values.mean()),
        effective_classes=float(torch.exp(entropy)),
    )
