"""Matching of teacher blocks to student blocks, in order, wherever shapes allow it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

Fits = Callable[[nn.Module, nn.Module], bool]
UNMATCHED = 1e6  # cost of a block without a source, above any choice of sources


@dataclass(frozen=True)
class Unit:
    """A block, or a layer with the norm and the activation behind it: children of one container that stay together."""

    children: tuple[str, ...]  # names in the container


def is_row(module: nn.Module) -> bool:
    """Return whether a module's children are numbered, as those of a Sequential or a ModuleList."""
    names = [name for name, _ in module.named_children()]
    return bool(names) and all(name.isdigit() for name in names) and not list(module.parameters(recurse=False))


def units(row: nn.Module) -> list[Unit]:
    """Return a row's units: each block by itself; in a row of plain layers, a weight matrix and all up to the next."""
    groups: list[list[str]] = []
    for name, child in row.named_children():
        starts = bool(list(child.children())) or isinstance(child, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
        if starts or not groups:
            groups.append([])
        groups[-1].append(name)
    return [Unit(tuple(group)) for group in groups]


def evenly(count: int, sources: int) -> list[list[float]]:
    """Return the costs of choosing evenly spaced sources: (count, sources), 0 where source and block meet exactly."""
    if count == 1:
        return [[float(source) for source in range(sources)]]
    ideal = [place * (sources - 1) / (count - 1) for place in range(count)]
    return [[abs(source - place) for source in range(sources)] for place in ideal]


def keeping(importance: Sequence[float], count: int) -> list[list[float]]:
    """Return the costs of keeping the most important sources: (count, sources); ties go to an even spacing."""
    largest = max(importance, default=0.0) or 1.0
    ties = evenly(count, len(importance))
    return [[1 - value / largest + 1e-6 * tie for value, tie in zip(importance, row, strict=True)] for row in ties]


def in_order(costs: Sequence[Sequence[float]], fits: Sequence[Sequence[bool]]) -> list[int | None]:
    """Return a source for each block, in rising order, at the least total cost; None if none fits.

    Shapes: costs and fits (blocks, sources). The order is that of the teacher, since each block was trained on the
    outputs of those before it.
    """
    count, sources = len(costs), len(costs[0]) if costs else 0
    # best[i][j]: of the first i blocks with the first j sources.
    best = [[0.0] * (sources + 1)] + [[0.0] * (sources + 1) for _ in range(count)]
    for block in range(1, count + 1):
        best[block][0] = block * UNMATCHED
        for source in range(1, sources + 1):
            options = [best[block][source - 1], best[block - 1][source] + UNMATCHED]
            if fits[block - 1][source - 1]:
                options.append(best[block - 1][source - 1] + costs[block - 1][source - 1])
            best[block][source] = min(options)
    chosen: list[int | None] = [None] * count
    block, source = count, sources
    while block and source:
        here = best[block][source]
        if here == best[block][source - 1]:
            source -= 1
        elif fits[block - 1][source - 1] and here == best[block - 1][source - 1] + costs[block - 1][source - 1]:
            chosen[block - 1] = source - 1
            block, source = block - 1, source - 1
        else:
            block -= 1
    return chosen
