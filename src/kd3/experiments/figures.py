"""A study's figure: accuracy over the varied setting, or one point per row."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from kd3.experiments.table import Line, Spread

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
    room = max(high - low, 1.0)
    axes.set_xlim(max(0.0, low - 0.15 * room), high + 0.3 * room)
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


def _curve(axes, points: Sequence[tuple[float | None, Spread]], series: str, colour: str) -> None:  # type: ignore[no-untyped-def]
    places, values = [x for x, _ in points], [value for _, value in points]
    axes.errorbar(places, [v.mean for v in values], yerr=[v.deviation or 0 for v in values], label=series, color=colour,
                  marker="o", markersize=4, capsize=3)  # fmt: skip


def _plain(axes) -> None:  # type: ignore[no-untyped-def]
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, labelsize=9)
