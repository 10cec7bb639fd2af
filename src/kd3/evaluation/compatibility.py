"""Checks that a teacher, its weights, a student and a pool belong together.

Check that weights belong to this network: another one with the same names but other layers in between also loads them.
Every batch norm stores the statistics of its training inputs. The check shifts each batch norm's input to its stored
mean and variance. In the right network the next input then also matches its stored statistics, for any images: a shift
of the images ends at the first batch norm. An extra pooling or another activation breaks the match.

Check that the teacher gets images as in its training: a wrong mean, std or colour order raises no error. The teacher's
confidence is no evidence: fed with values from 0 to 255 a network is *certain* of everything. Its batch norms store
the statistics of their training inputs; the likely setting is the one that comes nearest to these. Measured in
docs/models.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kd3.config.records import places
from kd3.evaluation.shift_statistics import BatchNormWatch, summed_up
from kd3.models.batch_norms import moments_of, remembering_norms
from kd3.models.calling import copy_of
from kd3.models.costs import SampleSize
from kd3.models.head import hooked
from kd3.models.preprocessing import Normalisation
from kd3.models.student import Student
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool
from kd3.pool.checks import watched
from kd3.pool.image_pool import at_size
from kd3.runtime import console
from kd3.runtime.compute import Compute
from kd3.runtime.errors import KD3Error, in_brief
from kd3.scoring.batches import PoolBatches
from kd3.scoring.scan import scored

LAYERS = 9  # batch norms checked; the first sees the images and is no evidence
# Of the distance at the worst of them. Measured with three ResNets for 32 pixels: right networks stood at 0.02 on the
# crawl and at 0.19 and less on any images (blur, noise, edges, JPEG, white noise, flat colours), those with a max
# pooling of 3 x 3 in their stem at 0.51 and more (docs/models.md).
FAR = 0.3


class _Enough(Exception):
    """All checked layers have run."""


@dataclass(frozen=True)
class FirstLayers:
    """Distance of the inputs of a network's first batch norms from their running statistics."""

    distances: dict[str, float]  # by module path, in the order of execution; 0 is the same; see `batch_norms`

    @property
    def warning(self) -> str | None:
        """Warning if the weights were probably trained in another network."""
        later = list(self.distances.items())[1:]
        if not later:
            return None
        layer, distance = max(later, key=lambda pair: pair[1])
        if distance <= FAR:
            return None
        return (
            f"the teacher's batch norms remember other inputs than this network gives them, from the first layers on "
            f"({distance:.2f} at {layer}; up to {FAR} on any images in the network that was trained): its weights fit "
            f"by name and shape, but were probably trained in another one (a pooling or a stride in its stem, another "
            f"activation)"
        )


def first_layers(teacher: Teacher, images: Tensor) -> FirstLayers:
    """Measure the match of a network's first layers.

    Batch norms that have seen no image (mean 0, variance 1) are skipped.

    Shapes: normalised images (B, C, S, S), on the teacher's device; a hundred or so are enough.
    """
    norms = {name: norm for name, norm in remembering_norms(teacher.module).items() if _has_learnt(norm)}
    found: dict[str, float] = {}
    handles = (norm.register_forward_pre_hook(_fitted(name, found)) for name, norm in norms.items())
    with hooked(handles), suppress(_Enough):
        teacher(images)
    return FirstLayers(found)


def _has_learnt(norm: nn.Module) -> bool:
    return bool((norm.running_mean != 0).any() or (norm.running_var != 1).any())  # type: ignore[union-attr]


def _fitted(name: str, found: dict[str, float]) -> Any:
    """Return a hook that records an input's distance from a batch norm's running statistics, and shifts it there."""

    def hook(norm: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if len(found) == LAYERS:
            raise _Enough
        seen = moments_of(arguments[0])
        mean, variance = norm.running_mean.double(), norm.running_var.double()
        gap = (seen.mean - mean).square() + (seen.variance.sqrt() - variance.sqrt()).square()
        found.setdefault(name, float((gap / (variance + norm.eps)).mean()))
        scale = ((variance + norm.eps) / (seen.variance + norm.eps)).sqrt()
        shift = mean - seen.mean * scale
        shape = (1, -1, *[1] * (arguments[0].ndim - 2))
        return (torch.addcmul(shift.float().view(shape), arguments[0], scale.float().view(shape)), *arguments[1:])

    return hook


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
                f"the teacher sees one class in nearly all images and is {100 * given.confidence:.0f}% sure of it: "
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
    is_grey = own.channels == 1
    inputs: dict[str, Callable[[Tensor], Tensor]] = {"as given": own}
    if not is_grey:
        inputs[COLOURS] = lambda pixels: own(pixels.flip(1))
    for setting, (mean, std) in (GREY_ALTERNATIVES if is_grey else ALTERNATIVES).items():
        if (tuple(mean), tuple(std)) != (own.mean, own.std):
            inputs[setting] = Normalisation(mean, std).to(images.device)
    readings: list[Reading] = []
    with console.progress("mean, std and colours", len(inputs) + 1, "passes") as bar:
        for setting, normalise in inputs.items():
            readings.append(_read(teacher, normalise(images), setting))
            bar.advance()
        layers = first_layers(teacher, own(images))
        bar.advance()
    return NormalisationCheck(readings[0], readings[1:], layers)


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


CHECKED = SampleSize(256, 64)
TRIED = 4  # images


def fitted(teacher: Teacher, pool: ImagePool) -> tuple[Teacher, ImagePool]:
    """Return a teacher with the pool's preparation, and the pool with its images at the teacher's size.

    A teacher of unknown size takes that of the pool.

    Raises:
        KD3Error: the pool's images are smaller than the teacher's, or their preparation differs.
    """
    if teacher.input_size is None:
        teacher.fit_to(pool.image_size)
    assert teacher.input_size is not None
    resized = at_size(pool, teacher.input_size, who="the teacher", where=f"the pool {pool.path or ''}")
    return teacher.seeing(resized.preparation), resized


def check_trains(student: Student, compute: Compute, *, name: str) -> None:
    """Try one forward and backward pass on a copy of a student in training mode.

    Raises:
        KD3Error: it fails on this device or in this precision.
    """
    trial = compute.place(copy_of(student)).train()
    channels, side = student.normalise.channels, student.input_size
    images = torch.randn(TRIED, channels, side, side, generator=torch.Generator().manual_seed(0)).to(compute.device)
    try:
        with torch.random.fork_rng(), compute.autocast():
            logits = trial(images.contiguous(memory_format=torch.channels_last))
        logits.float().square().mean().backward()
    except Exception as problem:
        instead = "; try --precision 32" if compute.precision != "32" else ""
        raise KD3Error(f"the student {name} cannot be trained ({compute}): {in_brief(problem)}{instead}") from problem


def normalisation_on(teacher: Teacher, pool: ImagePool, compute: Compute, places: np.ndarray) -> NormalisationCheck:
    """Run the teacher on some of a pool's images under its own mean and std, and under others.

    `places` are positions in the pool, of which an evenly spread sample is taken.
    """
    few = CHECKED.of(pool.image_size)
    images = torch.from_numpy(pool.read(evenly_spaced(places, few))).to(compute.device)
    compute.place(teacher)
    return check_normalisation(teacher, images)


def evenly_spaced(places: np.ndarray, count: int) -> np.ndarray:
    """Return `count` evenly spaced positions; all if there are fewer.

    The first ones would be no fair sample: a pool made of class folders begins with many images of one class.
    """
    if len(places) <= count:
        return places
    return places[np.arange(count) * len(places) // count]


def check_several_classes(teacher: Teacher, pool: ImagePool, compute: Compute) -> None:
    """Refuse a pool of one class.

    Raises:
        KD3Error: the teacher takes all of these images for one class, or the pool's pixels have changed.
    """
    if (doubt := one_class(teacher, pool, compute, np.arange(len(pool)))) is not None:
        with watched(pool, to_the_end=True):
            pass  # lost pixels look like one class, too
        raise KD3Error(doubt)


def one_class(teacher: Teacher, pool: ImagePool, compute: Compute, places: np.ndarray) -> str | None:
    """Return a warning if the teacher sees only one class in the images at these places of a pool, otherwise None.

    A student of these would learn to predict it always, and agree perfectly. The check ends at the first image of a
    second class.
    """
    compute.place(teacher)
    first: int | None = None
    for logits in scored(teacher, PoolBatches(pool, compute), places, teacher.normalise, compute):
        predicted = logits.argmax(1)
        first = int(predicted[0]) if first is None else first
        if (predicted != first).any():
            return None
    if first is None:
        return None
    which = f"{len(places):,} of the {len(pool):,} images" if len(places) < len(pool) else f"all {len(pool):,} images"
    return (
        f"the teacher takes {which} of the pool {pool.path or ''} for one class, "
        f"{teacher.classes[first]!r}, so a student would learn only this class; crawl images of the other "
        f"classes too, or check the teacher's mean and std with kd3 inspect"
    )


def check_several_labels(labels: np.ndarray, pool: ImagePool, classes: Sequence[str]) -> None:
    """Refuse to train on labels that are all the same.

    Raises:
        KD3Error: they are.
    """
    if len(np.unique(labels)) == 1:
        raise KD3Error(
            f"all images of the pool {pool.path or ''} are labelled {classes[labels[0]]!r}; training on labels takes "
            f"at least two classes"
        )


def check_student(student: Student, teacher: Teacher, pool: ImagePool, *, name: str) -> None:
    """Check that a student's logits can be blended with the teacher's on this pool.

    Raises:
        KD3Error: it takes images of another size, or knows other classes or another order of them.
    """
    if student.input_size != pool.image_size:
        raise KD3Error(
            f"the student {name} takes images of {student.input_size} pixels but the pool has them of "
            f"{pool.image_size}; give a student that was distilled on such images"
        )
    order = places(student.classes, teacher.classes, whose=f"the student {name}", other="the teacher")
    moved = next((label for label, place in enumerate(order) if label != place), None)
    if moved is not None:
        raise KD3Error(
            f"the student {name} calls class {moved} {student.classes[moved]!r} but the teacher "
            f"{teacher.classes[moved]!r}; give a student of this teacher's"
        )
