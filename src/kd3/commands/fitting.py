"""Checks that a teacher, a student and a pool belong together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from kd3.class_names import places
from kd3.compute import Compute
from kd3.domain_shift.normalisation import NormalisationCheck, check_normalisation
from kd3.errors import KD3Error
from kd3.models.copying import copy_of
from kd3.models.student import Student
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool
from kd3.training.pool_batches import PoolBatches
from kd3.training.scan import scored

LOOKED_AT = 256  # images
SMALL_SIDE = 64  # pixels
TRIED = 4  # images


def fitted(teacher: Teacher, pool: ImagePool) -> Teacher:
    """Return a teacher with the pool's preparation, and the pool's image size if its own is unknown.

    Raises:
        KD3Error: the pool's image size or preparation differs from the teacher's.
    """
    if teacher.input_size is None:
        teacher.fit_to(pool.image_size)
    if teacher.input_size != pool.image_size:
        raise KD3Error(
            f"the pool {pool.path or ''} has images of {pool.image_size} pixels but the teacher takes "
            f"{teacher.input_size}; ingest the crawl with --image-size {teacher.input_size}"
        )
    return teacher.seeing(pool.preparation)


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
        first = str(problem).strip().partition("\n")[0]
        instead = "; try --precision 32" if compute.precision != "32" else ""
        raise KD3Error(
            f"the student {name} cannot be trained ({compute}): {type(problem).__name__}: {first}{instead}"
        ) from problem


def normalisation_on(teacher: Teacher, pool: ImagePool, compute: Compute, places: np.ndarray) -> NormalisationCheck:
    """Run the teacher on some of a pool's images under its own mean and std, and under others.

    `places` are positions in the pool, of which an evenly spread sample is taken.
    """
    few = LOOKED_AT if pool.image_size <= SMALL_SIDE else LOOKED_AT // 4  # large images have enough pixels
    images = torch.from_numpy(pool.read(spread(places, few))).to(compute.device)
    compute.place(teacher)
    return check_normalisation(teacher, images)


def spread(places: np.ndarray, count: int) -> np.ndarray:
    """Return `count` evenly spaced positions; all if there are fewer.

    The first ones would be no fair sample: a pool made of class folders begins with many images of one class.
    """
    if len(places) <= count:
        return places
    return places[np.arange(count) * len(places) // count]


def check_several_classes(teacher: Teacher, pool: ImagePool, compute: Compute) -> None:
    """Refuse a pool of one class.

    Raises:
        KD3Error: the teacher takes all of these images for one class.
    """
    if (doubt := one_class(teacher, pool, compute)) is not None:
        raise KD3Error(doubt)


def one_class(teacher: Teacher, pool: ImagePool, compute: Compute) -> str | None:
    """Return a warning if the teacher sees only one class in a pool, otherwise None.

    A student would learn to predict it always, and agree perfectly. The check ends at the first image of a second
    class.
    """
    compute.place(teacher)
    first: int | None = None
    for logits in scored(teacher, PoolBatches(pool, compute), np.arange(len(pool)), teacher.normalise, compute):
        predicted = logits.argmax(1)
        first = int(predicted[0]) if first is None else first
        if (predicted != first).any():
            return None
    if first is None:
        return None
    return (
        f"the teacher takes all {len(pool):,} images of the pool {pool.path or ''} for one class, "
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
