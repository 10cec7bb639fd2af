"""Decision of a selection for each image, its reason, and the table of both."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet

from kd3.pool import ImagePool
from kd3.pool.listed import line_of, names
from kd3.selection import CHUNK, Predictions, Selection

REASONS = ("below threshold", "confident", "rescued", "filled")
BELOW, CONFIDENT, RESCUED, FILLED = range(4)


@dataclass(frozen=True)
class Decisions:
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


def decisions(predictions: Predictions, selection: Selection, classes: Sequence[str]) -> Decisions:
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
    return Decisions(
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


TABLE = "selection.parquet"
KEPT = "kept.jsonl"
METADATA_KEY = b"kd3"

_COLUMNS = [
    ("position", arrow.int64()),
    ("source", arrow.string()),
    ("key", arrow.string()),
    ("label", arrow.int32()),
    ("class", arrow.string()),
    ("confidence", arrow.float32()),
    ("threshold", arrow.float64()),
    ("kept", arrow.bool_()),
    ("reason", arrow.string()),
]


def write_table(folder: Path, decisions: Decisions, pool: ImagePool, about: dict[str, Any]) -> None:
    """Write `selection.parquet` and `kept.jsonl`, in chunks.

    The table has a row for each image in pool order. The list has a line of JSON for each kept one: its source and key.
    `about` becomes JSON in the table's metadata, under "kd3".

    Raises:
        KD3Error: the pool's index cannot be read.
        OSError: the files cannot be written.
    """
    schema = arrow.schema(_COLUMNS, metadata={METADATA_KEY: json.dumps(about, ensure_ascii=False)})
    classes, reasons = np.array(decisions.classes, dtype=object), np.array(REASONS, dtype=object)
    start = 0
    # pyarrow takes no path that is not UTF-8, hence the handle.
    with (
        (folder / TABLE).open("wb") as handle,
        parquet.ParquetWriter(handle, schema) as writer,
        (folder / KEPT).open("w", encoding="utf-8", newline="\n") as listed,
    ):
        for sources, keys in names(pool):
            rows = slice(start, start + len(keys))
            label, reason = decisions.label[rows], decisions.reason[rows]
            kept = reason != BELOW
            columns = [
                np.arange(rows.start, rows.stop),
                sources,
                keys,
                label,
                classes[label],
                decisions.confidence[rows],
                decisions.thresholds[label],
                kept,
                reasons[reason],
            ]
            arrays = [arrow.array(c, type=kind) for c, (_, kind) in zip(columns, _COLUMNS, strict=True)]
            writer.write_batch(arrow.record_batch(arrays, schema=schema))
            for place in np.flatnonzero(kept):
                listed.write(line_of(sources[place], keys[place]))
            start = rows.stop


def kept_positions(folder: Path) -> np.ndarray:
    """Return the pool positions that a finished selection kept, (M,) int64, ascending."""
    with (folder / TABLE).open("rb") as handle:
        table = parquet.read_table(handle, columns=["position", "kept"])
    positions: np.ndarray = table["position"].to_numpy()[table["kept"].to_numpy()]
    return positions
