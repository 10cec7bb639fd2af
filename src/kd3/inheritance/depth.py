"""Choice of blocks to remove for a smaller network: the least important ones, evenly over the rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from kd3.inheritance.blocks import evenly, in_order, units
from kd3.inheritance.droppable import Block, droppable_blocks
from kd3.inheritance.measured import block_importance
from kd3.models.multiply_adds import multiply_adds_of
from kd3.models.teacher import Teacher

Rule = Literal["even", "change", "recovery"]
PROBED = 2  # images


@dataclass(frozen=True)
class Blocks:
    """The removable blocks of a network."""

    blocks: list[Block]  # in the order in which they run
    costs: list[int]  # multiply-adds per image of each
    importance: list[float]  # of each; equal for even spacing
    rows: dict[str, int]  # row of blocks -> its number of blocks, including those not removable
    evenly_spaced: bool
    total: int  # multiply-adds an image of the network


def measured_blocks(teacher: Teacher, images: Tensor, rule: Rule) -> Blocks:
    """Return the removable blocks of a teacher, and their importance.

    By `change` or `recovery` (see `block_importance`), or all equal, for even spacing of the remaining ones.

    Shapes: images (B, C, H, W), normalised.
    """
    network = teacher.module
    blocks = droppable_blocks(network, images[:PROBED])
    modules = [[network.get_submodule(path) for path in block.paths] for block in blocks]
    each = iter(multiply_adds_of(network, images[:PROBED], [network, *(part for block in modules for part in block)]))
    total = next(each)
    costs = [sum(next(each) for _ in block) for block in modules]
    importance = [0.0] * len(blocks)
    if rule != "even" and blocks:
        measured = block_importance(teacher, images, rule, [(block[0], block[-1]) for block in modules])
        importance = [math.inf if value is None else value for value in measured]
    rows = {block.row: _size(network, block) for block in blocks}
    return Blocks(blocks, costs, importance, rows, rule == "even", total)


def blocks_to_drop(known: Blocks, *, most: float) -> list[Block]:
    """Return the blocks to remove until at most `most` multiply-adds per image are left, or no block is removable.

    Rows of blocks become shorter together, so that no stage is empty while another is complete; within a row the least
    important ones go first.
    """
    blocks, costs, importance, sizes = known.blocks, known.costs, known.importance, known.rows
    rows: dict[str, list[int]] = {}
    for place, block in enumerate(blocks):
        rows.setdefault(block.row, []).append(place)
    dropped: dict[str, list[int]] = {row: [] for row in rows}

    def order(row: str) -> tuple[float, float]:
        """The row with the largest remaining part; on a tie, the one with the least important next block."""
        rest = [importance[place] for place in rows[row] if place not in dropped[row]]
        return len(dropped[row]) / sizes[row], min(rest)

    left = known.total
    while left > most:
        open_rows = [row for row in rows if len(dropped[row]) < min(len(rows[row]), sizes[row] - 1)]
        if not open_rows:
            break
        row = min(open_rows, key=order)
        dropped[row] = _least(rows[row], importance, len(dropped[row]) + 1, evenly_spaced=known.evenly_spaced)
        left = known.total - sum(costs[place] for places in dropped.values() for place in places)
    return [blocks[place] for place in sorted(place for places in dropped.values() for place in places)]


def _size(network: nn.Module, block: Block) -> int:
    """Return how many blocks the row of a block has."""
    row = network.get_submodule(block.row)
    if len(block.paths) > 1:
        return len(units(row))
    kind = type(network.get_submodule(block.paths[0]))
    return sum(type(child) is kind for child in row.children())


def _least(places: Sequence[int], importance: Sequence[float], count: int, *, evenly_spaced: bool) -> list[int]:
    """Return the positions of `count` blocks of a row to remove."""
    if not evenly_spaced:
        return sorted(places, key=lambda place: importance[place])[:count]
    kept = in_order(evenly(len(places) - count, len(places)), [[True] * len(places)] * (len(places) - count))
    return [place for number, place in enumerate(places) if number not in kept]
