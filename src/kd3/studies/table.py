"""From finished runs to one line per row, means and standard deviations over the seeds, and the study's figure."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kd3.config.distill import DistillConfig
from kd3.config.run_records import Number, Percent, Seconds, read_events, read_origin, read_summary
from kd3.config.settings import build, read_yaml
from kd3.runtime import text as page
from kd3.runtime.errors import KD3Error, in_words
from kd3.runtime.run_folder import RunFolder
from kd3.runtime.text import clean
from kd3.studies.plan import Cell, Plan
from kd3.studies.runs import StudyFolder

_EXPLAINED = """\
Mean ± sample standard deviation over seeds. Accuracy in percent, of the student kept by its agreement with the teacher
on held-out images of its pool; labelled images chose nothing. Kept: percent of the pool in the last selection. At equal
time: at the last evaluation within the time that the quickest row takes."""


@dataclass(frozen=True)
class RunResult:
    """Result of one run. Percentages in [0, 100]."""

    row: str
    method: str
    series: str
    x: float | None
    pool: str
    seed: int
    agreement: Percent  # with the teacher on held-out pool images, of the student kept
    accuracy: Percent | None  # on --eval-data, of the student kept
    accuracy_at_end: Percent | None
    kept_last: Percent | None  # share of the training images in the last selection, percent
    images: Number
    seconds: Seconds
    history: tuple[tuple[Seconds, Percent], ...]  # (seconds, accuracy) at each evaluation
    changed: Mapping[str, Percent]  # accuracy on changed test images, by name
    run: Mapping[str, Any]  # all determinants of the result; see `what_was_run`
    machine: str  # hardware, precision, date, version of kd3


@dataclass(frozen=True)
class OverSeeds:
    """A mean, and the sample standard deviation if there are two or more."""

    mean: float
    deviation: float | None
    count: int

    def __str__(self) -> str:
        shown = f"{self.mean:.2f}" if abs(self.mean) < 1000 else f"{self.mean:,.0f}"
        return shown if self.deviation is None else f"{shown} ± {self.deviation:.2f}"


# Settings of inheritance from the teacher.
TAKEN = ("init", "inherit_blocks", "teacher_statistics", "teacher_blend", "recall", "deployment")


@dataclass(frozen=True)
class Line:
    """A row of the table."""

    row: str
    series: str
    x: float | None
    pool: str
    seeds: int
    measures: Mapping[str, OverSeeds]


def read_run(study_folder: StudyFolder, cell: Cell, changed: Mapping[str, float]) -> RunResult:
    """Return the result of a finished run.

    Raises:
        KD3Error: its records are damaged.
    """
    folder = RunFolder(study_folder.run(cell))
    summary = read_summary(folder.path)
    try:
        return _result(cell, folder, summary, changed)
    except (KeyError, IndexError, TypeError) as problem:
        raise KD3Error(f"the run {folder.path} is damaged: {in_words(problem)}") from None


def _result(cell: Cell, folder: RunFolder, summary: Mapping[str, Any], changed: Mapping[str, float]) -> RunResult:
    events = read_events(folder, classes=len(summary["classes"]))
    evals, selections = ([one for one in events if one["event"] == kind] for kind in ("evaluation", "selection"))
    kept = next((one for one in evals if one["step"] == summary["best_step"]), evals[-1])
    config = build(DistillConfig, read_yaml(folder.config, what="configuration of the run"), where=str(folder.config))
    origin = read_origin(folder)
    return RunResult(
        row=cell.row,
        method=summary["method"],
        series=cell.series,
        x=cell.x,
        pool=cell.pool,
        seed=cell.seed,
        agreement=summary["agreement"],
        accuracy=_accuracy(summary, kept),
        accuracy_at_end=evals[-1].get("accuracy"),
        kept_last=100 * selections[-1]["kept"] / selections[-1]["of"] if selections else None,
        images=summary["images"],
        seconds=summary["seconds"],
        history=tuple((one["seconds"], one["accuracy"]) for one in evals if "accuracy" in one),
        changed=dict(changed),
        run=what_was_run(config, teacher=origin["teacher"], pool=origin["pool"]),
        machine=_machine(origin),
    )


def _accuracy(summary: Mapping[str, Any], kept: Mapping[str, Any]) -> float | None:
    """Return the accuracy of the student that is in the folder; None if it was adapted after the run's measurement."""
    recall = summary.get("recall")
    return kept.get("accuracy") if recall is None or not recall["share"] else recall.get("accuracy_after")


def what_was_run(config: DistillConfig, *, teacher: str, pool: str) -> dict[str, Any]:
    """Return all determinants of a run's result, without paths of its machine.

    teacher: the teacher's fingerprint; pool: the pool's content hash.
    """
    config = config.settled()
    deciding = {"method", "student", "student_args", "seed", "precision", "train", *TAKEN}
    values = config.model_dump(mode="json", include=deciding)
    del values["train"]["checkpoint_minutes"]
    labelled = None if config.eval_data is None else Path(config.eval_data).name
    options = config.method_options.model_dump(mode="json")
    made = {**values, "options": options, "teacher": teacher, "pool": pool, "labelled": labelled}
    own_classifier = config.method in ("kd", "dfnd", "labels") or options.get("classifier") == "own"
    if config.train.optimizer == "muon" and (own_classifier or options.get("contrastive", "none") != "none"):
        made["muon_moves"] = "hidden matrices"  # before 30 November 2026 it also moved classifiers and embeddings
    return made


def _machine(origin: Mapping[str, Any]) -> str:
    machine = origin["machine"]
    made = f"{machine['processor']}, {machine['cores']} cores, {origin['compute']}"
    return f"{made}, torch {origin['packages']['torch']}, {origin['started'][:10]}, kd3 {origin['kd3']}"


def lines(results: Sequence[RunResult], rows: Sequence[str]) -> list[Line]:
    """Return a line for each row that has a finished run, in the study's order.

    "accuracy at equal time" is that of the last evaluation within the mean time of the fastest row.
    """
    by_row = {row: [r for r in results if r.row == row] for row in rows}
    by_row = {row: found for row, found in by_row.items() if found}
    quickest = min((statistics.mean(r.seconds for r in found) for found in by_row.values()), default=0.0)
    table = []
    for row, found in by_row.items():
        measures = {
            "accuracy": over_seeds([r.accuracy for r in found]),
            "accuracy at the end": over_seeds([r.accuracy_at_end for r in found]),
            "accuracy at equal time": over_seeds([_within(r.history, quickest) for r in found]),
            "agreement": over_seeds([r.agreement for r in found]),
            "kept": over_seeds([r.kept_last for r in found]),
            "seconds": over_seeds([r.seconds for r in found]),
        }
        for name in found[0].changed:
            measures[f"accuracy, {name}"] = over_seeds([r.changed.get(name) for r in found])
        first = found[0]
        known = {name: value for name, value in measures.items() if value is not None}
        table.append(Line(row, first.series, first.x, first.pool, len(found), known))
    return table


def over_seeds(values: Sequence[float | None]) -> OverSeeds | None:
    """Return mean and sample standard deviation; None if a value is missing."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return OverSeeds(statistics.mean(known), deviation, len(known))


def _within(history: Sequence[tuple[float, float]], seconds: float) -> float | None:
    reached = [accuracy for at, accuracy in history if at <= seconds * (1 + 1e-9)]
    return reached[-1] if reached else None


def markdown(plan: Plan, table: Sequence[Line], *, about: str, notes: Sequence[str] = ()) -> str:
    """Return the study's page."""
    names = list(dict.fromkeys(name for line in table for name in line.measures))
    head = ["row", "seeds", *names]
    body = [[line.row, str(line.seeds), *(str(line.measures.get(name, "")) for name in names)] for line in table]
    text = [f"# {page.escaped(plan.study.title)}", ""]
    text += [clean(plan.study.about.strip()), ""] if plan.study.about else []
    text += [about, "", page.table([[page.escaped(cell) for cell in row] for row in [head, *body]]), "", _EXPLAINED]
    for note in notes:
        text += ["", note]
    return "\n".join(text) + "\n"


def as_csv(table: Sequence[Line]) -> str:
    """Return the table as CSV, with a mean and a deviation per column."""
    names = list(dict.fromkeys(name for line in table for name in line.measures))
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["row", "series", "x", "pool", "seeds", *(f"{n} {what}" for n in names for what in ("mean", "sd"))])
    for line in table:
        cells: list[Any] = []
        for name in names:
            found = line.measures.get(name)
            cells += ["", ""] if found is None else [f"{found.mean:.6g}", _number(found.deviation)]
        writer.writerow([line.row, line.series, "" if line.x is None else line.x, line.pool, line.seeds, *cells])
    return file.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.6g}"


def as_json(
    table: Sequence[Line], results: Sequence[RunResult], changed_tests: Mapping[str, tuple[str, float]] | None = None
) -> dict[str, Any]:
    """Return the table, every run, and the changes and strengths that the names of changed test images stand for."""
    return {
        "table": [asdict(line) for line in table],
        "runs": [asdict(result) for result in results],
        "changed_tests": {name: list(made) for name, made in (changed_tests or {}).items()},
    }


_INK, _FAINT = "#1d2733", "#c9d1d9"
_COLOURS = ("#0b7a6f", "#b4481e", "#3b5b92", "#8a6d1d", "#7a3e8e", "#4d4d4d")


def can_draw() -> bool:
    """Return whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw(path: Path, table: Sequence[Line], *, title: str, dial: str | None) -> None:
    """Write a PNG of the table's accuracy, or of its agreement without labelled images."""
    from matplotlib.figure import Figure

    measure = "accuracy" if any("accuracy" in line.measures for line in table) else "agreement"
    on_dial = [line for line in table if line.x is not None]
    if dial and on_dial:
        figure = Figure(figsize=(8, 4.8), dpi=120, layout="constrained")
        _curves(figure, on_dial, measure, dial)
    else:
        figure = Figure(figsize=(8, 1.2 + 0.42 * len(table)), dpi=120, layout="constrained")
        _points(figure, table, measure)
    figure.suptitle(title, color=_INK, fontsize=12, x=0.01, ha="left")
    figure.savefig(path, format="png")  # the name is a temporary one


def _points(figure, table: Sequence[Line], measure: str) -> None:  # type: ignore[no-untyped-def]
    # Points, since bars that do not begin at zero mislead.
    axes = figure.add_subplot()
    found = [(line.row, line.measures[measure]) for line in table if measure in line.measures]
    names, values = [name for name, _ in found], [value for _, value in found]
    places = range(len(found))
    axes.errorbar([v.mean for v in values], places, xerr=[v.deviation or 0 for v in values], fmt="o", markersize=6,
                  color=_COLOURS[0], ecolor=_INK, capsize=3)  # fmt: skip
    for place, value in zip(places, values, strict=True):
        axes.annotate(str(value), (value.mean + (value.deviation or 0), place), (7, 0), textcoords="offset points",
                      va="center", color=_INK, fontsize=9)  # fmt: skip
    axes.set_yticks(places, names)
    axes.set_ylim(len(found) - 0.5, -0.5)
    low, high = min(v.mean - (v.deviation or 0) for v in values), max(v.mean + (v.deviation or 0) for v in values)
    extent = max(high - low, 1.0)
    axes.set_xlim(max(0.0, low - 0.15 * extent), high + 0.3 * extent)
    axes.set_xlabel(f"{measure}, percent")
    _plain(axes)


def _curves(figure, table: Sequence[Line], measure: str, dial: str) -> None:  # type: ignore[no-untyped-def]
    axes = figure.add_subplot()
    for number, series in enumerate(dict.fromkeys(line.series for line in table)):
        points = sorted(
            (line.x, line.measures[measure]) for line in table if line.series == series and measure in line.measures
        )
        _curve(axes, points, series, _COLOURS[number % len(_COLOURS)])
    axes.set_xlabel(dial)
    axes.set_ylabel(f"{measure}, percent")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _plain(axes)


def _curve(axes, points: Sequence[tuple[float | None, OverSeeds]], series: str, colour: str) -> None:  # type: ignore[no-untyped-def]
    places, values = [x for x, _ in points], [value for _, value in points]
    axes.errorbar(places, [v.mean for v in values], yerr=[v.deviation or 0 for v in values], label=series, color=colour,
                  marker="o", markersize=4, capsize=3)  # fmt: skip


def _plain(axes) -> None:  # type: ignore[no-untyped-def]
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, labelsize=9)
