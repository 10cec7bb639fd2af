"""Text of a page, from the facts about its runs."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd3.evaluation.labelled import LabelledImages
from kd3.evaluation.lost import Lost
from kd3.evaluation.shift_measure import Measurement
from kd3.models.costs import Cost
from kd3.reports import lost, sections
from kd3.reports.charts import Line, rendered, scatter, shown
from kd3.reports.pool_section import FeatureMap, PoolSection
from kd3.reports.run_records import RunRecords, verdict
from kd3.runtime.console import clock
from kd3.runtime.run_summary import adaptation_in_words, distances_in_words

LARGEST_PICTURE = 16 << 20  # bytes


@dataclass(frozen=True)
class RunFindings:
    """A run's records, and the results of running its networks, if possible."""

    records: RunRecords
    teacher: Cost | None = None
    student: Cost | None = None
    timing: str = ""  # machine of the times, in words
    pool: PoolSection | None = None
    lost: tuple[Lost, LabelledImages, list[str]] | None = None  # on labelled images, with doubts
    cascade: Mapping[str, Any] | None = None  # record of the cascade, with its curve
    missing: list[str] = field(default_factory=list)  # missing parts, in words


def page(found: Sequence[RunFindings]) -> str:
    """Return the HTML of a report on one run or several."""
    first = found[0].records
    several = len(found) > 1
    comparison = sections.comparison([one.records for one in found]) if several else None
    return rendered(
        "page.html",
        title=f"{len(found)} runs" if several else f"{first.summary['student']} by {first.summary['method']}",
        subtitle=_subtitle(first) if not several else ", ".join(one.records.name for one in found),
        lead=None if comparison is None else comparison.lead,
        table=comparison,
        runs=[_run(one, with_name=several) for one in found],
    )


def _subtitle(run: RunRecords) -> str:
    summary = run.summary
    return (
        f"from {lost.last_of(str(summary['teacher']))} on {summary['pool_images']:,} web images, "
        f"seed {summary['seed']}, {str(run.origin.get('started', ''))[:10]}, run {run.name}"
    )


def _run(found: RunFindings, *, with_name: bool) -> dict[str, Any]:
    run, pool = found.records, found.pool
    return {
        "name": run.name,
        "verdict": verdict(run),
        "missing": found.missing,
        "tiles": _tiles(run),
        "costs": _costs(found.teacher, found.student),
        "timed": found.timing if found.student is not None and found.student.is_timed else "",
        "batch": found.student.batch if found.student is not None else 0,
        "lost": None if found.lost is None else lost.lost_section(*found.lost),
        "cascade": None if found.cascade is None else lost.cascade_section(found.cascade),
        "training": sections.training(run),
        "selection": sections.selection(run),
        "grids": [shown(grid) for grid in pool.grids] if pool else [],
        "recall": _recall(run),
        "map": _map(pool.map) if pool and pool.map else None,
        "shift": _shift(pool.shift, pool.sampled) if pool else None,
        "load": sections.how_to_load(run),
        "again": sections.how_to_repeat(run),
        "origin": sections.origin(run),
        "config": sections.settings(run),
        "with_name": with_name,
    }


def _tiles(run: RunRecords) -> list[dict[str, str]]:
    summary = run.summary
    tiles = [{"name": "agreement", "value": f"{summary['agreement']:.1f}%", "more": "held-out web images"}]
    if run.accuracy is not None:
        tiles.append({"name": "accuracy", "value": f"{run.accuracy:.1f}%", "more": "labelled images"})
        if run.teacher_accuracy is not None:
            difference = f"{run.accuracy - run.teacher_accuracy:+.1f} points"
            more = f"the teacher has {run.teacher_accuracy:.1f}%"
            tiles.append({"name": "against the teacher", "value": difference, "more": more})
    tiles.append(
        {"name": "trained on", "value": f"{summary['images']:,}", "more": f"images, in {summary['steps']:,} steps"}
    )
    tiles.append(
        {
            "name": "training time",
            "value": clock(summary["seconds"]),
            "more": f"{summary['images_per_second']:,.0f} images/s, {summary['compute']}",
        }
    )
    if run.selections:
        last = run.selections[-1]
        tiles.append(
            {"name": "kept at the end", "value": f"{100 * last['kept'] / last['of']:.0f}%", "more": "of the pool"}
        )
    return tiles


def _costs(teacher: Cost | None, student: Cost | None) -> list[list[str]]:
    if student is None:
        return []
    rows = [_cost("student", student)]
    if teacher is not None:
        rows = [_cost("teacher", teacher), *rows, _times_less(teacher, student)]
    return rows


def _cost(name: str, cost: Cost) -> list[str]:
    row = [name, f"{cost.parameters / 1e6:.2f} M", f"{cost.multiply_adds / 1e6:,.1f} M"]
    return [*row, f"{cost.one:.2f} ms", f"{cost.many:.1f} ms"] if cost.is_timed else row


def _times_less(teacher: Cost, student: Cost) -> list[str]:
    row = [
        "the student is",
        _ratio(teacher.parameters, student.parameters, "smaller", "larger"),
        _ratio(teacher.multiply_adds, student.multiply_adds, "less", "more"),
    ]
    pairs = ((teacher.one, student.one), (teacher.many, student.many)) if student.is_timed else ()
    return [*row, *(_ratio(*pair, "faster", "slower") for pair in pairs)]


def _ratio(whole: float, part: float, less: str, more: str) -> str:
    """Describe the ratio of two figures as less or more."""
    if not whole or not part:
        return ""
    times = f"{max(whole, part) / min(whole, part):.1f}"
    return "the same" if times == "1.0" else f"{times} x {less if part < whole else more}"


def _recall(run: RunRecords) -> dict[str, Any] | None:
    """Return the words and the picture of an adaptation; None without one."""
    record = run.adaptation
    if record is None:
        return None
    picture = run.folder.recalled_picture
    source = None
    if record["kind"] != "given" and _may_be_shown(picture):
        source = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    title = "Recalled images" if record["kind"] == "recalled" else "Adapted to images of the deployment"
    return {
        "title": title,
        "words": adaptation_in_words(record),
        "about": distances_in_words(record),
        "picture": source,
        "began": "images of the crawl" if record["kind"] == "recalled" else "your images",
    }


def _may_be_shown(picture: Path) -> bool:
    """Return whether a file is small and in the run's folder itself: a link may lead to any file of the reader's."""
    return picture.is_file() and not picture.is_symlink() and picture.stat().st_size <= LARGEST_PICTURE


def _map(found: FeatureMap) -> dict[str, Any]:
    groups = [
        Line("kept at the end", [(float(x), float(y)) for x, y in found.kept]),
        Line("refused", [(float(x), float(y)) for x, y in found.refused]),
    ]
    if not len(found.refused):
        groups = [Line("trained on", groups[0].points)]
    first, second = (100 * share for share in found.explained)
    count = len(found.kept) + len(found.refused)
    about = (
        f"The two main directions of the teacher's {found.of} (PCA): they show {first + second:.0f}% of the variance "
        f"({first:.0f} + {second:.0f}%), so that points close here may be far apart. {count:,} images of the pool, "
        f"drawn at random."
    )
    return {"chart": scatter("The pool as the teacher sees it", groups, x="first direction", y=""), "about": about}


def _shift(found: Measurement, sampled: int) -> dict[str, Any]:
    return {
        "headline": found.verdict.sentence,
        "reasons": found.verdict.reasons,
        "about": f"By {sampled:,} images of the pool, drawn at random; kd3 shift measures all of them.",
    }
