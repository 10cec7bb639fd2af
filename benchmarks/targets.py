"""Required figures: one row each from the groups' results, beside its target."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Results = dict[str, Any]  # group -> its result


@dataclass(frozen=True)
class Figure:
    """One measured figure beside its target."""

    name: str
    value: float
    target: float
    at_least: bool  # otherwise at most
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        return self.value >= self.target if self.at_least else self.value <= self.target


def figures(results: Results) -> Iterator[Figure]:
    """Yield the figures of the executed groups."""
    for name, group, value, target, at_least, unit in _ROWS:
        if group not in results:
            continue
        try:
            yield Figure(name, value(results[group]), target, at_least, unit)
        except KeyError:
            continue  # this side was not measured


def _ratio(one: str, other: str) -> Callable[[Any], float]:
    """Return the median over the rounds of one side's rate by the other's: both drift with the machine."""

    def ratio(result: Any) -> float:
        turns = zip(result[one]["turns"], result[other]["turns"], strict=True)
        return float(statistics.median(a / b for a, b in turns))

    return ratio


_Row = tuple[str, str, Callable[[Any], float], float, bool, str]
_ROWS: tuple[_Row, ...] = (
    ("training images/s, kd3 paper / reference", "step", _ratio("kd3, paper", "reference"), 3.5, True, ""),
    ("training images/s, kd3 default / reference", "step", _ratio("kd3, default", "reference"), 3.5, True, ""),
    ("... paper with --compile-teacher", "step", _ratio("kd3, paper, teacher compiled", "reference"), 3.5, True, ""),
    ("... default with --fixed-views 2", "step", _ratio("kd3, default, views kept", "reference"), 5.0, True, ""),
    ("later scoring, kd3 / reference", "scoring", _ratio("kd3, later (student)", "reference"), 12, True, ""),
    (
        "... with --kd3.scoring training",
        "scoring",
        _ratio("kd3, later, --kd3.scoring training", "reference"),
        12,
        True,
        "",
    ),
    ("training step, kd3 / bound, paper", "step", _ratio("kd3, paper", "bound, paper"), 0.90, True, ""),
    ("training step, kd3 / bound, default", "step", _ratio("kd3, default", "bound, default"), 0.90, True, ""),
    ("epoch, kd3 / bound (steps and scoring)", "epoch", lambda r: r["median"]["whole_bound"], 0.85, True, ""),
    ("epoch, kd3 / bound (steps alone)", "epoch", lambda r: r["median"]["steps_bound"], 0.85, True, ""),
    ("ingest, 64 x 64 JPEGs, kd3 / bound", "ingest", _ratio("64x64, kd3", "64x64, bound"), 0.80, True, ""),
    ("ingest, 500 x 375 JPEGs, kd3 / bound", "ingest", _ratio("500x375, kd3", "500x375, bound"), 0.80, True, ""),
    ("anonymous memory an image more", "memory", lambda r: r["bytes_per_image"], 64, False, " bytes"),
    ("kd3 --help", "startup", lambda r: r["kd3 --help"]["seconds"], 0.3, False, " s"),
    ("torch imported by kd3 --help", "startup", lambda r: float(r["kd3 --help"]["torch"]), 0, False, ""),
)
