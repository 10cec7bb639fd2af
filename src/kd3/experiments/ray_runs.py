"""Run a study on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kd3.cluster.ray_tasks import Piece, do_all, has_gpus, ray_cluster
from kd3.experiments.plan import Cell
from kd3.experiments.runs import Failure, Layout, write_settings
from kd3.runs.folder import RunFolder


def run_all_on_ray(
    layout: Layout,
    cells: Sequence[tuple[Cell, Mapping[str, Any]]],
    *,
    device: str,
    finished: Callable[[Cell], None],
) -> list[Failure]:
    """Run all unfinished runs, as many at a time as fit on the cluster, and return the failures.

    A run whose worker is lost continues elsewhere from its last checkpoint; the study's folder is on a shared disk.
    `finished` is called for each success.

    Raises:
        KD3Error: there is no cluster.
    """
    by_name = {cell.name: cell for cell, _ in cells}
    pieces = []
    for cell, settings in cells:
        if RunFolder(layout.run(cell)).state() == "absent":
            write_settings(layout.config(cell), settings, device)
        arguments = {"config": str(layout.config(cell)), "out": str(layout.run(cell))}
        pieces.append(Piece(cell.name, "kd3.commands.distill:begin_or_go_on", arguments, layout.log(cell)))
    failures = []
    with ray_cluster() as ray:
        for done in do_all(ray, pieces, gpus=int(has_gpus(ray) and device != "cpu")):
            if done.problem is None:
                finished(by_name[done.name])
            else:
                failures.append(Failure(by_name[done.name], done.problem))
    return failures
