"""Both networks' opinions of the training part of the pool, for one selection."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from kd3.compute import Compute
from kd3.models.student import Student
from kd3.pool import ImagePool
from kd3.training.scan import score


class PoolScan:
    """A `kd3.methods.base.Scan`: each opinion is computed when it is first asked for.

    `teacher_logits` returns those of the whole pool; `positions` are the training images in it.
    """

    def __init__(
        self,
        student: Student,
        pool: ImagePool,
        positions: np.ndarray,
        teacher_logits: Callable[[], Tensor],
        compute: Compute,
    ) -> None:
        self.student, self.pool, self.positions = student, pool, positions
        self._teacher_logits, self.compute = teacher_logits, compute
        self._student_logits: Tensor | None = None

    @property
    def count(self) -> int:
        """Number of training images N."""
        return len(self.positions)

    def teacher_logits(self) -> Tensor:
        """Return (N, K)."""
        return self._teacher_logits()[self.positions]

    def student_logits(self) -> Tensor:
        """Return (N, K) of the student as it stands."""
        if self._student_logits is None:
            normalise = self.student.normalise
            self._student_logits = score(self.student, self.pool, self.positions, normalise, self.compute)
        return self._student_logits
