"""Recall at the end of a distillation: the decision, the images, and the record in the run folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from kd3.config.commands import RECALLED_IMAGES
from kd3.config.run_records import read_summary
from kd3.config.settings import LEAST_RECALLED
from kd3.inheritance.adapt import Adaptation, adapt_by_recall, adapt_to_given, obstacle
from kd3.inheritance.recalled import ChosenImages, Pairs, of_pool
from kd3.models.student import Student
from kd3.models.student_files import adaptation_of, copy_student, save_adapted
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool
from kd3.pool.leaks import KnownImages
from kd3.runtime import console
from kd3.runtime.compute import Compute
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import whole_folder, write_json
from kd3.runtime.run_folder import RunFolder
from kd3.runtime.run_summary import with_adaptation

Asked = Literal["auto", "off"] | int  # number of images to recall


def check_recall(
    asked: Asked, student: Student, teacher: Teacher, positions: np.ndarray, given: ChosenImages | None
) -> None:
    """Refuse, before training, a request that would fail at its end.

    Raises:
        KD3Error: a network has no batch norms for recalled or given images, or there are too few images.
    """
    if given is None and asked in ("auto", "off"):
        return
    if problem := obstacle(student, teacher if given is None else None):
        raise KD3Error(f"{problem}; leave --{'recall' if given is None else 'deployment'} out")
    if given is None and len(positions) < LEAST_RECALLED:
        raise KD3Error(
            f"the pool leaves {len(positions)} images to recall from; at least {LEAST_RECALLED} are needed: leave "
            f"--recall out"
        )


def adapt_student(
    student: Student,
    teacher: Teacher,
    pool: ImagePool,
    positions: np.ndarray,
    compute: Compute,
    *,
    images: Asked = "auto",
    given: ChosenImages | None = None,
    known: Sequence[KnownImages] = (),
    seed: int = 0,
    accuracy: Callable[[Student], float] | None = None,
) -> tuple[Adaptation, Pairs | None] | None:
    """Adapt a trained student on recalled images, or on given ones; None, with a sentence, if that is impossible.

    Args:
        student: trained, in evaluation mode, its batch norms not synced over ranks; its running statistics change if
            its agreement with the teacher rises.
        teacher: the user's own, with its own statistics and its batch norms not folded.
        positions: pool images to draw from, such as those trained on.
        images: number to recall.
        given: unlabelled deployment images, in place of recalled ones.
        known: images like one of these are not drawn.
        seed: for the choice of images.
        accuracy: returns the accuracy on labelled images in percent, reported before and after; not used for the
            choice.
    """
    if images == "off":
        return None
    if problem := obstacle(student, teacher if given is None else None):
        console.info(f"no recall: {problem}")
        return None
    compute.place(student).eval()
    before = None if accuracy is None else accuracy(student)
    pairs: Pairs | None = None
    try:
        if given is not None:
            adaptation, pairs = adapt_to_given(student, teacher, given, compute)
        else:
            count = RECALLED_IMAGES if images == "auto" else int(images)
            chosen = of_pool(pool, positions, count=count, seed=seed, known=known)
            adaptation, pairs = adapt_by_recall(student, teacher, chosen, compute)
    except KD3Error as failure:
        console.warn(f"no recall, the student stays as trained: {failure}")  # do not lose the training
        return None
    if before is not None and accuracy is not None:
        after = accuracy(student) if adaptation.changed else before
        adaptation = replace(adaptation, accuracy_before=round(before, 2), accuracy_after=round(after, 2))
    console.info(str(adaptation))
    return adaptation, pairs


def as_trained(folder: RunFolder) -> Path:
    """Return the folder of the student as trained."""
    record = adaptation_of(folder.student)
    return folder.student_as_trained if record is not None and record["share"] > 0 else folder.student


def keep_adapted(folder: RunFolder, student: Student, adaptation: Adaptation, pairs: Pairs | None) -> None:
    """Install an adapted student in its run; the caller holds the run's lock.

    The student's weights file, which contains the record, is replaced last and atomically; until then the run is
    unchanged. The copies for people follow.
    """
    if adaptation.changed and as_trained(folder) == folder.student:
        shutil.rmtree(folder.student_as_trained, ignore_errors=True)  # of an interrupted adaptation
        with whole_folder(folder.student_as_trained, what="the student as trained") as place:
            copy_student(folder.student, place)
    record = adaptation.record()
    save_adapted(student, folder.student, record)
    if not adaptation.changed:
        shutil.rmtree(folder.student_as_trained, ignore_errors=True)
    write_json(folder.adaptation, record)
    if pairs is None:
        folder.recalled_picture.unlink(missing_ok=True)
    else:
        pairs.write(folder.recalled_picture)


def keep_in_summary(folder: RunFolder, record: dict[str, Any]) -> None:
    """Write a new adaptation into a finished run's summary."""
    write_json(folder.summary, with_adaptation(read_summary(folder.path), record))
