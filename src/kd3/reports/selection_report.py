"""Summary of a selection: `selection.json`, and the same in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kd3.reports.selection_decisions import BELOW, KEPT, REASONS, TABLE, Decisions
from kd3.reports.selection_pictures import GRIDS, OVERVIEW
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import read_versioned
from kd3.runtime.text import aligned, one_line

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
