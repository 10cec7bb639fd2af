"""Blocks to leave out of a smaller network: those that can be removed, the least important ones first."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kd3.inheritance.channels import evenly, in_order, is_row, units
from kd3.inheritance.inherited import block_importance
from kd3.models.costs import multiply_adds_of
from kd3.models.head import evaluating, hooked
from kd3.models.teacher import Teacher


@dataclass(frozen=True)
class Block:
    """A removable part of a network: one module, or consecutive plain layers."""

    paths: tuple[str, ...]

    @property
    def row(self) -> str:
        """Path of the parent module, which contains similar ones."""
        return self.paths[0].rpartition(".")[0]

    def __str__(self) -> str:
        first, last = self.paths[0], self.paths[-1]
        return first if first == last else f"{first} to {last.rpartition('.')[2]}"


@dataclass(frozen=True)
class _Call:
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    output: Any


def droppable_blocks(network: nn.Module, images: Tensor) -> list[Block]:
    """Return the removable blocks in order of execution.

    The innermost modules that carry their input past their weights (residual blocks); in a network without these, each
    convolution or linear layer of a Sequential, with the norm and activation behind it, that keeps the shape.

    Shapes: images (B, C, H, W), network inputs; two are enough.
    """
    calls = _calls(network, images)
    found = [path for path, call in calls.items() if _is_residual(network.get_submodule(path), call)]
    outer = {path for path in found if any(other.startswith(f"{path}.") for other in found)}
    blocks = [Block((path,)) for path in found if path not in outer]
    return blocks or _plain_units(network, calls)


def _calls(network: nn.Module, images: Tensor) -> dict[str, _Call]:
    """Return the call of every module that runs once and keeps the shape of its first argument, in order."""
    runs: Counter[str] = Counter()
    calls: dict[str, _Call] = {}

    def watch(path: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            runs[path] += 1
            first = arguments[0] if arguments else None
            if isinstance(first, Tensor) and isinstance(output, Tensor) and first.shape == output.shape:
                calls[path] = _Call(arguments, keywords, output)

        return hook

    parts = ((path, module) for path, module in network.named_modules() if path)
    handles = (module.register_forward_hook(watch(path), with_kwargs=True) for path, module in parts)
    with hooked(handles), torch.no_grad(), evaluating(network):
        network(images)
    return {path: call for path, call in calls.items() if runs[path] == 1}


def _is_residual(module: nn.Module, call: _Call) -> bool:
    """Return whether a module with zero weights returns its input, or its input after a ReLU."""
    parameters = list(module.parameters())
    x = call.arguments[0]
    if not parameters or not list(module.children()) or not x.is_floating_point():
        return False
    values = [parameter.data for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.data = torch.zeros_like(parameter.data)
        with torch.no_grad(), evaluating(module):
            output = module(x, *call.arguments[1:], **call.keywords)
    except Exception:  # user code, called out of context
        return False
    finally:
        for parameter, data in zip(parameters, values, strict=True):
            parameter.data = data
    return any(torch.allclose(output, expected, atol=1e-6) for expected in (x, torch.relu(x)))


def _plain_units(network: nn.Module, calls: dict[str, _Call]) -> list[Block]:
    found = []
    for path, module in network.named_modules():
        if not is_row(module):
            continue
        for unit in units(module):
            names = tuple(f"{path}.{name}" if path else name for name in unit.children)
            modules = [network.get_submodule(name) for name in names]
            plain = not any(list(part.children()) for part in modules)
            weighted = any(list(part.parameters()) for part in modules)
            if plain and weighted and all(name in calls for name in names):
                found.append(Block(names))
    return found


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
