"""Comparison of every exported file with the student, on the same images and in alternating turns."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from kd3.errors import KD3Error
from kd3.shipping.compare import TOLERANCE, Runner, agreement, in_batches, milliseconds, parity


@dataclass(frozen=True)
class Written:
    """A file of the export, and its measurements."""

    file: str
    reader: str  # its runtime
    bytes: int
    same_class: float  # percent of the compared images with the student's prediction
    largest_difference: float | None  # of a logit; None for 8 bits
    milliseconds: Mapping[int, float]  # by batch size
    teacher_agreement: float | None = None  # percent


class Comparison:
    """Gathers the measurements of each file.

    Args:
        expected: the student's logits, (N, K).
        teacher: the teacher's, or None.
        where: description of the images.
    """

    def __init__(self, expected: Tensor, teacher: Tensor | None, where: str) -> None:
        self.expected, self.teacher, self.where = expected, teacher, where
        self._written: list[tuple[Written, Runner, Tensor]] = []

    def add(self, path: Path, reader: str, run: Runner, inputs: Tensor, *, exact: bool = True) -> None:
        """Compare a written file; `inputs` are the images in its input format.

        Raises:
            KD3Error: it does not run, or differs from the student though it should be `exact`.
        """
        found = parity(self.expected, run, inputs, what=path.name)
        if exact and not found.holds:
            raise KD3Error(
                f"{path.name} is not the student: logits differ by up to {found.largest_difference:.2g} (of "
                f"{found.largest_logit:.2g}; allowed is {TOLERANCE:g} of it) on {found.images:,} {self.where}; nothing "
                f"was written"
            )
        written = Written(
            file=path.name + ("/" if path.is_dir() else ""),
            reader=reader,
            bytes=_size(path),
            same_class=found.same_class,
            largest_difference=found.largest_difference if exact else None,
            milliseconds={},
            teacher_agreement=None if self.teacher is None else agreement(in_batches(run, inputs), self.teacher),
        )
        self._written.append((written, run, inputs))

    def timed(self) -> list[Written]:
        """Return all files with their times; those with the same input ran in turns."""
        times: dict[str, dict[int, float]] = {}
        for given in {id(inputs): inputs for _, _, inputs in self._written}.values():
            group = {one.file: run for one, run, inputs in self._written if inputs is given}
            times |= milliseconds(group, given)
        return [replace(one, milliseconds=times[one.file]) for one, _, _ in self._written]


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else os.path.getsize(path)
