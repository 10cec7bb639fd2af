"""Parts of two networks that belong together: blocks matched in order, and groups of channels with their importance."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from kd3.runtime.errors import in_words

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


# Operations that keep the order of the channels.
_KEEPS = {
    *(torch.relu, torch.relu_, torch.flatten, torch.mean, torch.clone),
    *(F.relu, F.relu_, F.relu6, F.gelu, F.silu, F.hardswish, F.dropout),
    *(F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d),
}
_KEEPS_METHODS = {"mean", "relu", "relu_", "flatten", "contiguous", "clone"}
_ADDS = {operator.add, operator.iadd, torch.add}
_KEEPING_LAYERS = (
    *(nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.Identity, nn.Dropout, nn.Dropout2d),
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Flatten),
)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class Space(NamedTuple):
    """Channels written and read by several layers, which must be chosen together."""

    channels: int
    free: bool  # channels may be removed: all layers that use them are supported


class LayerSpaces(NamedTuple):
    """Channels that a layer reads and writes; a norm does both."""

    reads: int
    writes: int


class ChannelSpaces:
    """The channel spaces of a network, found by following its graph.

    Args:
        network: a classifier that `torch.fx` can trace.

    Raises:
        ValueError: it cannot be traced.
    """

    def __init__(self, network: nn.Module) -> None:
        try:
            graph = fx.symbolic_trace(network).graph
        except Exception as problem:  # a forward may contain any code
            raise ValueError(in_words(problem).splitlines()[0]) from problem
        self.network = network
        self._parent: list[int] = []
        self._size: list[int] = []
        self._fixed: set[int] = set()
        self._layers: dict[str, LayerSpaces] = {}
        at: dict[fx.Node, int | None] = {}
        for node in graph.nodes:
            at[node] = self._follow(node, at)
        self.layers = {name: LayerSpaces(self._root(a), self._root(b)) for name, (a, b) in self._layers.items()}

    def space(self, number: int) -> Space:
        """Return a space by its number in `layers`."""
        root = self._root(number)
        return Space(self._size[root], root not in {self._root(fixed) for fixed in self._fixed})

    def importance(self, number: int) -> Tensor:
        """Return the importance of each channel of a space in its layers, (C,) float64; they sum to 1.

        The squared weights that write, scale and read a channel, as a share of the layer's total.

        Source: weight subcloning (arXiv 2312.09299), section 3, by magnitude.
        """
        root = self._root(number)
        total = torch.zeros(self._size[root], dtype=torch.float64)
        for name, (reads, writes) in self.layers.items():
            weight = getattr(self.network.get_submodule(name), "weight", None)
            if weight is None:
                continue
            squares = weight.detach().double().cpu().square()
            if writes == root:
                total += _share(squares.flatten(1).sum(1) if squares.ndim > 1 else squares)
            if reads == root and reads != writes and squares.ndim > 1 and squares.shape[1] == len(total):
                total += _share(squares.transpose(0, 1).flatten(1).sum(1))
        return _share(total)

    def _follow(self, node: fx.Node, at: dict[fx.Node, int | None]) -> int | None:
        inputs = [at.get(argument) for argument in node.all_input_nodes]
        if node.op == "placeholder":
            return self._new(3, fixed=True)
        if node.op == "output":
            self._fix(inputs)
            return None
        if node.op == "call_module":
            return self._through_layer(str(node.target), inputs)
        kept = node.target in (_KEEPS_METHODS if node.op == "call_method" else _KEEPS)
        if kept and len(inputs) == 1 and _keeps_channels(node):
            return inputs[0]
        both = [space for space in inputs if space is not None]
        if node.op == "call_function" and node.target in _ADDS and len(inputs) == len(both) == 2:
            return self._join(*both)
        self._fix(inputs)
        return None

    def _through_layer(self, name: str, inputs: list[int | None]) -> int | None:
        layer = self.network.get_submodule(name)
        space = inputs[0] if len(inputs) == 1 else None
        if isinstance(layer, _KEEPING_LAYERS):
            return space
        if isinstance(layer, _NORMS) and space is not None and layer.num_features == self._size[self._root(space)]:
            self._layers[name] = LayerSpaces(space, space)
            return space
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            wide_in = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
            wide_out = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
            groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
            if space is None or self._size[self._root(space)] != wide_in:
                self._fix(inputs)
                space = self._new(wide_in, fixed=True)
            if groups == wide_in == wide_out:  # depthwise
                self._layers[name] = LayerSpaces(space, space)
                return space
            written = self._new(wide_out, fixed=groups > 1)
            if groups > 1:
                self._fix([space])
            self._layers[name] = LayerSpaces(space, written)
            return written
        self._fix(inputs)
        return None

    def _new(self, size: int, *, fixed: bool = False) -> int:
        self._parent.append(len(self._parent))
        self._size.append(size)
        if fixed:
            self._fixed.add(len(self._parent) - 1)
        return len(self._parent) - 1

    def _root(self, number: int) -> int:
        while self._parent[number] != number:
            number = self._parent[number]
        return number

    def _join(self, one: int, other: int) -> int | None:
        one, other = self._root(one), self._root(other)
        if self._size[one] != self._size[other]:
            self._fix([one, other])
            return None
        self._parent[other] = one
        return one

    def _fix(self, spaces: Iterable[int | None]) -> None:
        self._fixed.update(space for space in spaces if space is not None)


def _share(values: Tensor) -> Tensor:
    total = values.sum()
    return values / total if total > 0 else torch.full_like(values, 1 / max(1, len(values)))


def _keeps_channels(node: fx.Node) -> bool:
    """Return whether a mean is over positions, not channels; True for other operations."""
    if node.target not in ("mean", torch.mean):
        return True
    axes: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    return axes is not None and all(
        axis in (2, 3, -1, -2) for axis in (axes if isinstance(axes, (tuple, list)) else [axes])
    )
