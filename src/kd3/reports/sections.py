"""Sections of a report that follow from a run's records only."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from markupsafe import Markup

from kd3.config.methods import METHODS
from kd3.reports.charts import Line, line_chart, spark
from kd3.reports.run_records import RunRecords
from kd3.training.trackers import flat

MOST_CLASSES = 30  # with their own rows; the least kept ones, if there are more
NOT_COMPARED = ("out",)


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side, that of the best agreement first."""

    lead: str
    names: list[str]
    columns: list[str]
    rows: list[list[str]]
    charts: list[Markup] = field(default_factory=list)
    settings: list[tuple[str, list[str]]] = field(default_factory=list)  # those that differ


def training(run: RunRecords) -> list[Markup]:
    """Return the charts of agreement, losses, learning rate and speed."""
    evaluations, steps = run.evaluations, run.training
    curves = [Line("agreement with the teacher", _points(evaluations, "agreement"))]
    if any("accuracy" in one for one in evaluations):
        curves.append(Line("accuracy on the labelled images", _points(evaluations, "accuracy")))
    losses = [Line(name.replace("_", " "), _points(steps, name)) for name in ["loss", *run.terms]]
    seen = "training images"
    charts = [
        line_chart("Agreement", curves, x=seen, y="percent"),
        line_chart("Losses, as they are added up", losses, x=seen, y="logarithmic", log=True),
        line_chart("Learning rate", [Line("learning rate", _points(steps, "lr"))], x=seen, y="", zero=True),
        line_chart("Speed", [Line("images a second", _points(steps, "images_per_second"))], x=seen, y="", zero=True),
    ]
    return [chart for chart in charts if chart]


def selection(run: RunRecords) -> dict[str, Any] | None:
    """Describe the selection by round and by class; None if the method selects nothing."""
    rounds = run.selections
    if not rounds or all(one["kept"] == one["of"] for one in rounds):
        return None
    first, last = rounds[0], rounds[-1]
    shares = [(one["images"], 100 * one["kept"] / one["of"]) for one in rounds]
    words = (
        f"{len(rounds)} selections. The first kept {shares[0][1]:.0f}% of {first['of']:,} images, the last "
        f"{shares[-1][1]:.0f}%."
    )
    charts = []
    if len(rounds) > 1:
        charts.append(
            line_chart("Kept of the pool", [Line("kept", shares)], x="training images", y="percent", zero=True)
        )
    table = _by_class(run, rounds) if first.get("kept_per_class") and last.get("kept_per_class") else None
    if table is None:
        return {"words": words, "charts": charts, "rows": [], "caption": ""}
    if len(rounds) > 1 and len(run.classes) <= 12 and all(one.get("thresholds") for one in rounds):
        charts.append(_thresholds(run, rounds))
    return {"words": words, "charts": charts, **table}


def _by_class(run: RunRecords, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first, last = rounds[0], rounds[-1]
    order = list(range(len(run.classes)))
    caption = "Images that were predicted as each class, and those of them that were kept."
    if len(order) > MOST_CLASSES:
        order = sorted(sorted(order, key=lambda label: last["kept_per_class"][label])[:MOST_CLASSES])
        caption += f" The {MOST_CLASSES} of {len(run.classes):,} classes of which least was kept at the end."
    rows = []
    for label in order:
        kept = [one["kept_per_class"][label] for one in rounds if one.get("kept_per_class")]
        rows.append(
            [
                run.classes[label],
                f"{first['predicted_per_class'][label]:,}",
                f"{last['predicted_per_class'][label]:,}",
                f"{first['kept_per_class'][label]:,}",
                f"{last['kept_per_class'][label]:,}",
                spark(kept, most=max(kept)),
                *(f"{one['thresholds'][label]:.3f}" if one.get("thresholds") else "–" for one in (first, last)),
            ]
        )
    return {"rows": rows, "caption": caption}


def _thresholds(run: RunRecords, rounds: Sequence[Mapping[str, Any]]) -> Markup:
    """Return a chart of the classes with the lowest and highest final thresholds, and of the mean."""
    last = rounds[-1]["thresholds"]
    by_height = sorted(range(len(last)), key=lambda label: last[label])
    chosen = [by_height[-1], by_height[len(last) // 2], by_height[0]]
    lines = [
        Line(run.classes[label], [(one["images"], one["thresholds"][label]) for one in rounds])
        for label in dict.fromkeys(chosen)
    ]
    return line_chart("Thresholds: highest, middle, lowest", lines, x="training images", y="confidence", zero=True)


def comparison(runs: Sequence[RunRecords]) -> Comparison:
    """Return runs side by side."""
    order = sorted(runs, key=lambda run: -float(run.summary["agreement"]))
    with_accuracy = any(run.accuracy is not None for run in runs)
    columns = [
        "run",
        "method",
        "student",
        "seed",
        "agreement",
        *(["accuracy"] if with_accuracy else []),
        "images",
        "seconds",
    ]
    rows = []
    for run in order:
        summary = run.summary
        accuracy = [] if not with_accuracy else ["" if run.accuracy is None else f"{run.accuracy:.2f}%"]
        rows.append(
            [
                run.name,
                str(summary["method"]),
                str(summary["student"]),
                str(summary["seed"]),
                f"{summary['agreement']:.1f}%",
                *accuracy,
                f"{summary['images']:,}",
                f"{summary['seconds']:,.0f}",
            ]
        )
    return Comparison(
        lead=_lead(order),
        names=[run.name for run in order],
        columns=columns,
        rows=rows,
        charts=_curves(order, with_accuracy),
        settings=_differences(order),
    )


def _lead(order: Sequence[RunRecords]) -> str:
    best = order[0]
    pools = {run.origin.get("pool") for run in order}
    words = f"{best.name} agrees most with its teacher: {best.summary['agreement']:.1f}%."
    if len(pools) > 1:
        words += " The runs learned from different pools and each is held to images of its own, so that these "
        words += "agreements do not compare."
    elif len({run.origin.get("teacher") for run in order}) > 1:
        words += " The runs have different teachers, so that these agreements do not compare."
    return words


def _curves(order: Sequence[RunRecords], with_accuracy: bool) -> list[Markup]:
    charts = []
    for title, name in [("Agreement", "agreement"), ("Accuracy on labelled images", "accuracy")][: 1 + with_accuracy]:
        for x, words in (("images", "training images"), ("seconds", "seconds")):
            lines = [Line(run.name, [(e[x], e[name]) for e in run.evaluations if name in e]) for run in order]
            charts.append(
                line_chart(f"{title} by {words}", [line for line in lines if line.points], x=words, y="percent")
            )
    return [chart for chart in charts if chart]


def _differences(runs: Sequence[RunRecords]) -> list[tuple[str, list[str]]]:
    settings_of = [flat(run.config) for run in runs]
    methods = {str(run.summary["method"]) for run in runs}
    names = dict.fromkeys(name for one in settings_of for name in one)
    found = []
    for name in names:
        group = name.partition(".")[0]
        if name in NOT_COMPARED or (group in METHODS and group not in methods):
            continue
        values = [str(one.get(name, "")) for one in settings_of]
        if len(set(values)) > 1:
            found.append((name, values))
    return found


def _points(events: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(float(event["images"]), float(event[name])) for event in events if event.get(name) is not None]


def how_to_load(run: RunRecords) -> str:
    """Return the lines of Python that load the student."""
    module = ", module=your_untrained_network" if str(run.summary["student"]).startswith("live:") else ""
    if run.summary.get("student_code"):
        module = ", trust_code=True"
    return (
        f"import kd3\n\nstudent = kd3.load_student({str(run.folder.path)!r}{module})\n"
        f"logits = student(student.normalise(images))  # images: uint8 RGB {_shape(run)}"
    )


def _shape(run: RunRecords) -> str:
    side = "H" if run.input_size is None else run.input_size
    return f"(B, 3, {side}, {side})"


def how_to_repeat(run: RunRecords) -> str:
    """Return the command that repeats the run, and the one that exports its student."""
    path = str(run.folder.path)
    trust = ["--trust-code"] if run.summary.get("student_code") else []
    again = ["kd3", "distill", "--config", str(run.folder.config), "--out", f"{path}-again"]
    export = ["kd3", "export", path, "--out", f"{run.name}-onnx", "--format", "onnx", "--int8", *trust]
    return f"{shlex.join(again)}\n{shlex.join(export)}"


def origin(run: RunRecords) -> list[tuple[str, str]]:
    """Return the inputs and the machine of the run."""
    made, machine = run.origin, run.origin.get("machine") or {}
    packages = ", ".join(f"{name} {version}" for name, version in (made.get("packages") or {}).items() if version)
    return [
        ("kd3", str(made.get("kd3", ""))),
        ("begun", str(made.get("started", ""))),
        ("python", str(made.get("python", ""))),
        ("packages", packages),
        ("machine", f"{machine.get('processor', '')}, {machine.get('cores', '')} cores; {made.get('compute', '')}"),
        ("teacher", f"{run.summary['teacher']}, fingerprint {str(made.get('teacher', ''))[:16]}"),
        ("pool", f"{run.summary['pool']}, content {str(made.get('pool', ''))[:16]}"),
    ]


def settings(run: RunRecords) -> str:
    """Return the resolved settings as YAML."""
    text: str = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
    return text
