"""Check that the teacher gets images as in its training: a wrong mean, std or colour order raises no error.

What tells is not the teacher's confidence: fed with values from 0 to 255 a network is *certain* of everything. Its
batch norms know what their inputs looked like in training; the setting under which a pool's come nearest to that is
the likely one. Measured in docs/models.md.
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

# How many times nearer another setting must bring the batch norms before it is spoken of. On photographs wrong
# settings stood at 3.1 and more, right ones on any pool at 1.7 and less.
CLEARLY_BETTER = 2.5
# The same for the order of colours, which changes less: wrong ones stood at 1.27 and more on photographs, right
# ones at 1.02 and less on any pool, and at 1.16 and less on images of one class.
COLOURS_BETTER = 1.2
COLLAPSED_CLASSES = 1.5  # that are left, of many images, where a setting is off beyond all measure
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
    distance: float | None  # of the batch norms, as `kd3 shift` tells it; None without any
    confidence: float  # mean, in [0, 1]
    effective_classes: float  # exp of the entropy of the mean prediction


@dataclass(frozen=True)
class NormalisationCheck:
    """A teacher's own setting beside others."""

    given: Reading
    others: list[Reading]
    network: FirstLayers | None = None  # whether it is the one that was trained

    @property
    def warning(self) -> str | None:
        """One sentence where another setting is clearly the likelier one, or it or the network cannot be right."""
        # In another network other settings may fit better by chance; in the right one this tells nothing of them.
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
    """Run a teacher on images under its own mean and std, and under others that people use.

    Costs eight forward passes. It cannot tell settings apart that are nearly the same (CIFAR's and ImageNet's), nor
    see anything in grey pictures' order of colours; without batch norms it sees only what is off beyond all measure.

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
