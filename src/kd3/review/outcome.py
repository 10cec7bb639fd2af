"""Decision of a selection for each image, and its reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kd3.selection.predictions import Predictions
from kd3.selection.select import CHUNK, Selection

REASONS = ("below threshold", "confident", "rescued", "filled")
BELOW, CONFIDENT, RESCUED, FILLED = range(4)


@dataclass(frozen=True)
class Outcome:
    """A selection over N images and K classes, by pool position: 9 bytes per image."""

    confidence: np.ndarray  # (N,) float32, of the predicted class, in [0, 1]
    label: np.ndarray  # (N,) int32, the predicted class
    reason: np.ndarray  # (N,) uint8, index into REASONS; all but BELOW are kept
    thresholds: np.ndarray  # (K,) float64, to exceed
    predicted: np.ndarray  # (K,) int64
    kept: np.ndarray  # (K,) int64, of those predicted as the class
    rescued: dict[int, np.ndarray]  # of a class without kept images: added positions, likeliest first
    classes: Sequence[str]
    warnings: list[str]  # actions of the fallback, in words

    @property
    def images(self) -> int:
        """Number of images N."""
        return len(self.label)

    @cached_property
    def by_reason(self) -> dict[str, int]:
        """Number of images for each reason."""
        return dict(zip(REASONS, np.bincount(self.reason, minlength=len(REASONS)).tolist(), strict=True))

    def mean_confidence(self) -> list[float | None]:
        """Return the mean confidence of each class's predictions; None without predictions."""
        total = np.zeros(len(self.classes))
        for part in _parts(self.images):
            total += np.bincount(self.label[part], weights=self.confidence[part], minlength=len(total))
        return [float(t / n) if n else None for t, n in zip(total, self.predicted, strict=True)]

    def of_classes(self) -> Iterator[np.ndarray]:
        """Yield for each class the positions predicted as it, the most confident first."""
        order = np.lexsort((-self.confidence, self.label))
        ends = np.cumsum(self.predicted)
        for end, count in zip(ends, self.predicted, strict=True):
            yield order[end - count : end]

    def most_kept(self, count: int) -> list[int]:
        """Return at most `count` classes with the most kept (or added) images, in class order."""
        given = self.kept + np.array([len(self.rescued.get(label, ())) for label in range(len(self.classes))])
        return sorted(np.argsort(-given, kind="stable")[:count].tolist())


def outcome(predictions: Predictions, selection: Selection, classes: Sequence[str]) -> Outcome:
    """Return the decisions of a selection by thresholds on its images.

    An image above its class's threshold is "confident", even if it has other reasons.
    """
    assert selection.thresholds is not None
    assert selection.predicted_per_class is not None
    assert selection.kept_per_class is not None
    confidence, label = predictions.confidence.numpy(), predictions.label.numpy()
    thresholds = selection.thresholds.numpy()
    given = selection.rescued.numpy() if selection.rescued is not None else np.empty((0, 0), dtype=np.int64)
    reason = np.full(len(label), BELOW, dtype=np.uint8)
    reason[selection.index.numpy()] = FILLED
    reason[given.ravel()] = RESCUED
    for part in _parts(len(label)):
        confident = confidence[part].astype(np.float64) > thresholds[label[part]]
        reason[part][confident] = CONFIDENT
    return Outcome(
        confidence=confidence,
        label=label,
        reason=reason,
        thresholds=thresholds,
        predicted=selection.predicted_per_class.numpy(),
        kept=selection.kept_per_class.numpy(),
        rescued=dict(zip(selection.rescued_classes, given, strict=True)),
        classes=list(classes),
        warnings=selection.warnings(classes),
    )


def _parts(count: int) -> list[slice]:
    return [slice(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
