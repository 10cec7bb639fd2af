"""One row for every image of the pool, and the list of kept images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet

from kd3.pool import ImagePool
from kd3.pool.listed import line_of
from kd3.pool.names import names
from kd3.review.outcome import BELOW, REASONS, Outcome

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


def write_table(folder: Path, outcome: Outcome, pool: ImagePool, about: dict[str, Any]) -> None:
    """Write `selection.parquet` and `kept.jsonl`, in chunks.

    The table has a row for each image in pool order. The list has a line of JSON for each kept one: its source and key.
    `about` becomes JSON in the table's metadata, under "kd3".

    Raises:
        KD3Error: the pool's index cannot be read.
        OSError: the files cannot be written.
    """
    schema = arrow.schema(_COLUMNS, metadata={METADATA_KEY: json.dumps(about, ensure_ascii=False)})
    classes, reasons = np.array(outcome.classes, dtype=object), np.array(REASONS, dtype=object)
    start = 0
    # pyarrow takes no path that is not UTF-8, hence the handle.
    with (
        (folder / TABLE).open("wb") as handle,
        parquet.ParquetWriter(handle, schema) as writer,
        (folder / KEPT).open("w", encoding="utf-8", newline="\n") as listed,
    ):
        for sources, keys in names(pool):
            rows = slice(start, start + len(keys))
            label, reason = outcome.label[rows], outcome.reason[rows]
            kept = reason != BELOW
            columns = [
                np.arange(rows.start, rows.stop),
                sources,
                keys,
                label,
                classes[label],
                outcome.confidence[rows],
                outcome.thresholds[label],
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
