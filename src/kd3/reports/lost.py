"""Sections on lost accuracy and on asking the teacher."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from kd3.evaluation.accuracy import Bin
from kd3.evaluation.labelled import LabelledImages
from kd3.evaluation.lost import (
    AS_TRAINED,
    OF_EACH_CLASS,
    STUDENT,
    TEACHER,
    WORST,
    Lost,
    SideBySide,
    total_in_words,
    worst_in_words,
)
from kd3.reports.charts import Grid, Line, Tile, interval_bar, line_chart, rendered, shown
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import write_text
from kd3.runtime.run_folder import RunFolder
from kd3.runtime.run_summary import cascade_images_in_words, cascade_in_words

MOST_CLASSES = 30  # with their own rows; the largest losses, if there are more
EXAMPLES = 8  # images of a class
LEAST_IN_BIN = 10  # images: the accuracy of fewer means nothing


def lost_section(lost: Lost, data: LabelledImages, notes: Sequence[str] = ()) -> dict[str, Any]:
    """Return the section for the template; `notes` are doubts about the figures."""
    total, rows = lost.total, lost.classes
    caption = "Percent right and difference in points, with 95% intervals; the difference is paired. "
    if len(rows) > MOST_CLASSES:
        rows = lost.worst(MOST_CLASSES)
        caption += f"The {len(rows)} of {len(lost.classes):,} classes that lost most. "
    span = max((max(abs(one.difference.low), abs(one.difference.high)) for one in rows), default=1.0)
    errors = lost.calibration_error
    words = f"Calibration error: teacher {errors[TEACHER]:.1f}%, student {errors[STUDENT]:.1f}%"
    if AS_TRAINED in errors:
        words += f" (as trained, without its temperature, {errors[AS_TRAINED]:.1f}%)"
    return {
        "lead": total_in_words(lost),
        "notes": list(notes),
        "worst": worst_in_words(lost),
        "caption": caption + OF_EACH_CLASS,
        "rows": [_row(total, span, name="all images"), *(_row(one, span) for one in rows)],
        "grids": [shown(grid) for grid in _grids(lost, data)],
        "reliability": reliability_chart("Calibration on labelled images", lost.reliability, y="percent right"),
        "calibration": words + ". It is the mean gap between how sure a network is and how often it is "
        "right; bins of fewer than 10 images are not drawn.",
        "cascade": [
            [f"{one.promised:g}%", f"{one.escalated:.1f}%", str(one.agreement), str(one.accuracy)]
            for one in lost.cascade
        ],
    }


def write_page(
    out: Path, lost: Lost, data: LabelledImages, notes: Sequence[str] = (), *, model: str, teacher: str
) -> Path:
    """Write a page with this section only, and return its path.

    Raises:
        KD3Error: it cannot be written.
    """
    text = rendered(
        "lost_page.html",
        title="What was lost",
        subtitle=f"{last_of(model)} beside its teacher {last_of(teacher)} on {last_of(data.source)}",
        lost=lost_section(lost, data, notes),
    )
    try:
        write_text(out, text)
    except OSError as problem:
        raise KD3Error(f"{out} cannot be written: {problem.strerror or problem}") from None
    return out


def reliability_chart(title: str, found: dict[str, list[Bin]], *, y: str) -> Markup:
    """Return a chart of accuracy over confidence for each network, with the diagonal."""
    lines = [
        Line(name, [(100 * one.confidence, 100 * one.right) for one in bins if one.images >= LEAST_IN_BIN])
        for name, bins in found.items()
    ]
    sure = [Line("as sure as right", [(0.0, 0.0), (100.0, 100.0)])]
    return line_chart(title, [*lines, *sure], x="how sure, percent", y=y, zero=True)


def _row(one: SideBySide, span: float, name: str | None = None) -> list[Any]:
    bar = interval_bar(one.difference.value, one.difference.low, one.difference.high, span=span)
    cells = [one.difference.signed(), bar, str(one.teacher), str(one.student), f"{one.images:,}"]
    return [name or one.name, *cells, f"{one.only_teacher:,} / {one.only_student:,}"]


def _grids(lost: Lost, data: LabelledImages) -> list[Grid]:
    grids = []
    for one in lost.worst(WORST):
        examples = lost.examples.get(one.name, [])
        if not examples:
            continue
        pixels = data.examples([example.place for example in examples])
        tiles = []
        for example, image in zip(examples, pixels, strict=True):
            theirs = f"teacher: {one.name} {example.teacher:.0f}%"
            own = f"student: {example.student_class} {example.student:.0f}%"
            tiles.append(Tile(f"labelled image {example.place}", f"{theirs} | {own}", image))
        about = f"{one.only_teacher:,} of {one.images:,} images; those of which both were surest."
        grids.append(Grid(f"{one.name}: only the teacher is right", about, tiles))
    return grids


def last_of(path: str) -> str:
    """Return the last part of a path, and of a live object its whole name."""
    return path if path.startswith("live:") else Path(path).name or path


def of_run(folder: RunFolder, record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the stored record of `kd3 cascade` for a run's student; None if missing, or for another student."""
    if record is None or not folder.cascade.is_file():
        return None
    try:
        kept: dict[str, Any] = json.loads(folder.cascade.read_text(encoding="utf-8"))
        if any(kept[name] != value for name, value in record.items()):
            return None
        cascade_section(kept)
    except (OSError, ValueError, KeyError, TypeError):  # damaged: recomputed from the pool, if available
        return None
    return kept


def cascade_section(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section for the template, from the record with its curve and bins."""
    confidence = f"{found['confidence']:g}%"
    met = [one for one in found["thresholds"] if one["margin"] is not None]
    curve = [
        Line(name, [(point["escalated"], point[key]) for point in found["curve"]])
        for name, key in (("on these images", "agreement"), (f"at least, at {confidence} confidence", "promised"))
    ]
    marks = Line("thresholds", [(one["escalated"], one["reached"]) for one in met])
    bins = {name: [Bin(**one) for one in rows] for name, rows in found["reliability"].items()}
    rows = [
        [f"{one['agreement']:g}%", f"{one['escalated']:.1f}%", f"{one['margin']:.3f}"]
        if one["margin"] is not None
        else [f"{one['agreement']:g}%", "no threshold", one["problem"]]
        for one in found["thresholds"]
    ]
    return {
        "lead": f"On {cascade_images_in_words(found)} the student agrees with its teacher on "
        f"{found['agreement_alone']:.1f}%. Where the student is not sure, the teacher can be asked.",
        "words": cascade_in_words(found),
        "rows": rows,
        "confidence": confidence,
        "charts": [
            line_chart("Agreement of the cascade", [*curve, marks], x="percent of images to the teacher", y="percent"),
            reliability_chart("Calibration by the teacher", bins, y="percent agreed"),
        ],
    }
