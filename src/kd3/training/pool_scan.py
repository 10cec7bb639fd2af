"""Predictions of both networks on the training part of the pool, for one selection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kd3.compute import Compute
from kd3.models.fold import Pair, fold
from kd3.models.student import Student
from kd3.selection.blend import blend_logits
from kd3.selection.predictions import Predictions, predict
from kd3.training.latest import LatestPredictions
from kd3.training.pool_batches import PoolBatches
from kd3.training.scan import scored
from kd3.training.transfer import sent


class KeptLogits(Protocol):
    """The teacher's logits: an array for the whole pool, or a function that gives them for positions."""

    def __getitem__(self, positions: np.ndarray, /) -> np.ndarray:
        """Shapes: (n,) positions in the pool -> (n, K)."""


class PoolScan:
    """A `kd3.methods.base.Scan`: predictions are computed on request and held in a few bytes per image.

    `teacher_logits` returns those of the pool, by position in it; `positions` are the training images in it;
    `foldable` are batch norms of the student that a scan may merge away; without a student only the teacher is
    available. `title` names the progress of the student's scans; None hides it. `typicality` returns the training
    images' distances to the lost data, and `outliers` which of them are unlike all of it.
    """

    def __init__(
        self,
        student: Student | None,
        batches: PoolBatches,
        positions: np.ndarray,
        teacher_logits: Callable[[], KeptLogits],
        compute: Compute,
        latest: LatestPredictions,
        foldable: list[Pair] | None = None,
        title: str | None = None,
        typicality: Callable[[], Tensor] | None = None,
        outliers: Callable[[], Tensor] | None = None,
    ) -> None:
        self.student, self.batches, self.positions = student, batches, positions
        self._teacher_logits, self.compute, self.latest = teacher_logits, compute, latest
        self.foldable, self.title = foldable or [], title
        self._typicality, self._outliers = typicality, outliers

    @property
    def count(self) -> int:
        """Number of training images N."""
        return len(self.positions)

    def teacher_logits(self) -> Iterator[Tensor]:
        """Yield (n, K), on the CPU."""
        return self._teachers(self.positions)

    def typicality(self) -> Tensor:
        """Return the distance of each image to the lost data, (N,) float32, on the CPU."""
        assert self._typicality is not None
        return self._typicality()

    def outliers(self) -> Tensor:
        """Return which images are unlike all of the lost data, (N,) bool, on the CPU."""
        assert self._outliers is not None
        return self._outliers()

    def predictions(self, teacher_weight: float) -> Predictions:
        """Return the predictions of the blend of both networks' logits for each image now."""
        index = torch.arange(self.count)
        self._look_at(index, teacher_weight)
        return self.latest.predictions()

    def latest_predictions(self, teacher_weight: float, *, refreshed: float) -> Predictions:
        """Return the latest prediction for each image; renew the oldest ones of unseen images."""
        if self.latest.is_empty:
            return self.predictions(teacher_weight)
        self._look_at(self.latest.oldest(refreshed), teacher_weight)
        return self.latest.predictions()

    def _look_at(self, index: Tensor, teacher_weight: float) -> None:
        """Predict the images at these training positions, in order."""
        positions = self.positions[index.numpy()]
        # A network of weight 0 in the blend is not run.
        asked = self._students(positions) if teacher_weight < 1 else self._teachers(positions)
        start = 0
        for logits in asked:
            places = slice(start, start + len(logits))
            if 0 < teacher_weight < 1:
                teacher = torch.from_numpy(self._teacher_logits()[positions[places]])
                logits = blend_logits(sent(teacher, logits.device), logits, teacher_weight)
            self.latest.note(index[places], predict(logits))
            start += len(logits)

    def _students(self, positions: np.ndarray) -> Iterator[Tensor]:
        assert self.student is not None
        network, normalise = fold(self.student, self.foldable), self.student.normalise
        return scored(network, self.batches, positions, normalise, self.compute, title=self.title)

    def _teachers(self, positions: np.ndarray, size: int = 4096) -> Iterator[Tensor]:
        kept = self._teacher_logits()
        for start in range(0, len(positions), size):
            yield torch.from_numpy(kept[positions[start : start + size]])
