"""Decision of a selection for each image, its reason, the table of both, and `selection.json`, also in words."""

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
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import read_versioned
from kd3.runtime.text import aligned, one_line
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


GRIDS = "grids"
OVERVIEW = "overview.png"
NAME = "selection.json"
FORMAT = "kd3-selection"
VERSION = 1
CLASSES_SHOWN = 40
LONGEST_NAME = 32


def report(decisions: Decisions, about: dict[str, Any], grids: dict[int, str]) -> dict[str, Any]:
    """Return the content of `selection.json`.

    Args:
        about: inputs and settings of the selection.
        grids: the file names of the classes that have pictures, by label.
    """
    refused = decisions.by_reason[REASONS[BELOW]]
    means = decisions.mean_confidence()
    classes = [
        {
            "label": label,
            "name": name,
            "predicted": int(decisions.predicted[label]),
            "kept": int(decisions.kept[label]),
            "threshold": float(decisions.thresholds[label]),
            "mean_confidence": means[label],
            "rescued": [int(position) for position in decisions.rescued.get(label, ())],
            "grids": {what: f"{GRIDS}/{grids[label]}-{what}.png" for what in ("kept", "refused")}
            if label in grids
            else None,
        }
        for label, name in enumerate(decisions.classes)
    ]
    return {
        "format": FORMAT,
        "version": VERSION,
        **about,
        "totals": {"images": decisions.images, "kept": decisions.images - refused, **decisions.by_reason},
        "warnings": decisions.warnings,
        "classes": classes,
    }


def read_report(folder: Path) -> dict[str, Any] | None:
    """Return a finished selection's `selection.json`; None if the folder holds none.

    Raises:
        KD3Error: it is damaged, something else's, or written by a newer kd3.
    """
    path = folder / NAME
    return read_versioned(path, format_name=FORMAT, version=VERSION) if path.is_file() else None


def check_same(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse a folder whose selection has other inputs or settings.

    Raises:
        KD3Error: names the first that differs, and both values.
    """
    for group in ("settings", "teacher", "student", "pool"):
        # Names and paths may change if the hash is equal.
        then, asked = _identity(before.get(group)), _identity(now[group])
        for name in then | asked:
            if then.get(name) != asked.get(name):
                what = name if group == "settings" else f"{group}'s {name}"
                raise KD3Error(
                    f"{folder} holds a selection made with another {what} ({_short(then.get(name))}, not "
                    f"{_short(asked.get(name))}); choose another --out"
                )


def _identity(group: Any) -> dict[str, Any]:
    group = group if isinstance(group, dict) else {}
    return {name: value for name, value in group.items() if name not in ("name", "path")}


def _short(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)[:16]


def describe(folder: Path, values: dict[str, Any]) -> str:
    """Return a report in words: a line for each class, totals, actions of the fallback, file locations."""
    totals, settings, classes = values["totals"], values["settings"], values["classes"]
    share = 100 * totals["kept"] / totals["images"]
    who = f"teacher {values['teacher']['name']}"
    if values["student"]:
        who += f" (weight {settings['teacher_weight']:g}) and student {values['student']['name']}"
    lines = [
        one_line(f"kept {totals['kept']:,} of {totals['images']:,} images ({share:.1f}%) of {values['pool']['path']}"),
        f"  by {one_line(who)}, threshold {settings['threshold']:g}; {values['compute']}",
        *_table(classes, totals, any(entry["rescued"] for entry in classes)),
        *(one_line(f"warning: {words}") for words in values["warnings"]),
        f"list      {folder / KEPT}",
        f"table     {folder / TABLE}, {NAME}",
    ]
    drawn = sum(entry["grids"] is not None for entry in classes)
    which = "" if drawn in (0, len(classes)) else f", of the {drawn:,} classes with most kept (more: --grid-classes)"
    what = f"CLASS-kept.png, CLASS-refused.png, {OVERVIEW}{which}" if drawn else OVERVIEW
    return "\n".join([*lines, f"pictures  {folder / GRIDS}: {what}"])


def _table(classes: list[dict[str, Any]], totals: dict[str, Any], has_rescued: bool) -> list[str]:
    # Of very many classes those that matter most: the most often predicted.
    shown = sorted(classes, key=lambda entry: -entry["predicted"])[:CLASSES_SHOWN]
    shown.sort(key=lambda entry: int(entry["label"]))
    rows = [("class", "predicted", "kept", "threshold", "rescued")]
    for entry in shown:
        figures = f"{entry['predicted']:,}", f"{entry['kept']:,}", f"{entry['threshold']:.3f}"
        rows.append((_one_line(entry["name"]), *figures, f"{len(entry['rescued']):,}" if entry["rescued"] else ""))
    rows.append(("total", f"{totals['images']:,}", f"{totals['kept']:,}", "", ""))
    lines = aligned(rows if has_rescued else [row[:-1] for row in rows])
    if len(shown) < len(classes):
        lines.insert(-1, f"  ... {len(classes) - len(shown):,} more classes in {NAME}")
    return lines


def _one_line(name: str) -> str:
    plain = one_line(" ".join(name.split()))
    return plain if len(plain) <= LONGEST_NAME else plain[: LONGEST_NAME - 3] + "..."
