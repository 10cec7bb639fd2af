"""Rows of a study that share one run."""

from __future__ import annotations

from collections.abc import Iterable

from kd3.config.commands import DistillConfig
from kd3.config.settings import build
from kd3.experiments.plan import Cell
from kd3.experiments.runs import Layout
from kd3.runs.folder import RunFolder


def made_for(layout: Layout, cells: Iterable[Cell], planned: Iterable[Cell]) -> dict[str, Cell]:
    """Return the cell whose run folder serves each cell, by name: its own, or one with the same settings.

    A finished folder has priority, then an interrupted one, then that of the earliest row. Only `planned` cells are
    run; others serve if they are finished.
    """
    alike: dict[str, list[Cell]] = {}
    for cell in cells:
        config = build(DistillConfig, {**cell.settings, "pool": cell.pool, "out": "-"}, where=f"row {cell.row!r}")
        alike.setdefault(config.settled().model_dump_json(), []).append(cell)
    wanted = {cell.name for cell in planned}
    found = {}
    for group in alike.values():
        states = {cell.name: RunFolder(layout.run(cell)).state() for cell in group}
        ready = [cell for cell in group if cell.name in wanted or states[cell.name] == "finished"]
        first = min(
            ready or group, key=lambda cell: (states[cell.name] != "finished", states[cell.name] != "interrupted")
        )
        for cell in group:
            found[cell.name] = cell if states[cell.name] == "finished" else first
    return found
