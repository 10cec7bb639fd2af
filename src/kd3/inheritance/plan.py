"""Origin of a student's weights in its teacher, part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from kd3.inheritance.channels import ChannelSpaces, Unit, evenly, in_order, is_row, keeping, units

Importance = Callable[[str], list[float]]  # path of a row of blocks -> the importance of each
LEFT_OUT = 1.5  # cost of a source with an extra layer: prefer a near source without one
LEAST_SHARE = 0.1  # of the parameters: a smaller match is chance, such as two equal stems


@dataclass(frozen=True)
class Part:
    """One layer of the student with its own parameters."""

    layer: str  # module path in the student
    source: str | None  # module path in the teacher; None: random start
    how: Literal["whole", "channels", "random"]
    parameters: int


@dataclass(frozen=True)
class Inheritance:
    """Parts that a student takes from its teacher.

    `keep` lists the teacher's output and input channels for every thinned layer; None: all.
    """

    parts: list[Part]
    keep: dict[str, tuple[Tensor | None, Tensor | None]] = field(default_factory=dict)
    blocks: dict[str, list[int | None]] = field(default_factory=dict)  # row of blocks -> the teacher's block for each
    problem: str | None = None  # reason for a partial or missing fit

    @property
    def share(self) -> float:
        """Part of the student's parameters from the teacher, in [0, 1]."""
        total = sum(part.parameters for part in self.parts)
        return sum(part.parameters for part in self.parts if part.source is not None) / max(1, total)

    @property
    def is_empty(self) -> bool:
        """Whether so little fits that a random start is better."""
        return self.share < LEAST_SHARE

    @property
    def narrows(self) -> bool:
        """Whether some layers take only a part of the teacher's channels."""
        return any(part.how == "channels" for part in self.parts)


def plan_inheritance(student: nn.Module, teacher: nn.Module, *, importance: Importance | None = None) -> Inheritance:
    """Plan the origin of each part of a student.

    Modules are matched by name, since families of networks share names. Blocks of a row are matched in order, evenly
    spaced or by `importance`. Narrower layers take the teacher's most important channels, consistently for reading and
    writing.

    Source: weight selection (arXiv 2311.18823), weight subcloning (arXiv 2312.09299).
    """
    own, student_path = _inside(student)
    source, teacher_path = _inside(teacher)
    match = _Matching(importance, teacher_path)
    match.children(own, source, student_path, teacher_path)
    pairs = dict(match.pairs)
    keep, problem = _thinned(student, teacher, pairs)
    parts = []
    for layer, module in _layers(student):
        count = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        origin = pairs.get(layer)
        if origin is not None and _same_shapes(module, teacher.get_submodule(origin)):
            parts.append(Part(layer, origin, "whole", count))
        elif origin is not None and layer in keep:
            parts.append(Part(layer, origin, "channels", count))
        else:
            parts.append(Part(layer, None, "random", count))
    return Inheritance(parts, keep, match.blocks, problem)


def inherit(student: nn.Module, teacher: nn.Module, inheritance: Inheritance) -> None:
    """Copy the teacher's weights and running statistics into the student, as planned."""
    for part in inheritance.parts:
        if part.source is None:
            continue
        own, source = student.get_submodule(part.layer), teacher.get_submodule(part.source)
        rows, columns = inheritance.keep.get(part.layer, (None, None))
        tensors = dict(_own_tensors(source))
        for name, tensor in _own_tensors(own):
            value = tensors[name].detach()
            if value.ndim and rows is not None:
                value = value.index_select(0, rows.to(value.device))
            if value.ndim > 1 and columns is not None:
                value = value.index_select(1, columns.to(value.device))
            tensor.detach().copy_(value)


class _Matching:
    """Walks both networks by name and pairs their layers."""

    def __init__(self, importance: Importance | None, teacher_path: str) -> None:
        self.importance = importance
        self.pairs: list[tuple[str, str]] = []
        self.blocks: dict[str, list[int | None]] = {}

    def children(self, own: nn.Module, source: nn.Module, path: str, source_path: str) -> None:
        if list(_own_tensors(own)) and _fit(own, source):
            self.pairs.append((path, source_path))
        if is_row(own) and is_row(source):
            self._row(own, source, path, source_path)
            return
        theirs = dict(source.named_children())
        for name, child in own.named_children():
            if name in theirs:
                self.children(child, theirs[name], _join(path, name), _join(source_path, name))

    def _row(self, own: nn.Module, source: nn.Module, path: str, source_path: str) -> None:
        mine, theirs = units(own), units(source)
        fits = [
            [
                len(unit.children) <= len(other.children)
                and all(
                    _fit_inside(own.get_submodule(a), source.get_submodule(b))
                    for a, b in zip(unit.children, other.children, strict=False)
                )
                for other in theirs
            ]
            for unit in mine
        ]
        costs = evenly(len(mine), len(theirs))
        if self.importance is not None and len(mine) < len(theirs):
            costs = keeping(self.importance(source_path), len(mine))
        for number, unit in enumerate(mine):
            for at, other in enumerate(theirs):
                costs[number][at] += LEFT_OUT * (_layer_count(source, other) > _layer_count(own, unit))
        chosen = in_order(costs, fits)
        if len(theirs) > 1 and any(list(child.children()) for child in own.children()):
            self.blocks[path] = chosen
        for unit, place in zip(mine, chosen, strict=True):
            if place is None:
                continue
            for name, origin in zip(unit.children, theirs[place].children, strict=False):
                child, theirs_child = own.get_submodule(name), source.get_submodule(origin)
                self.children(child, theirs_child, _join(path, name), _join(source_path, origin))


def _thinned(
    student: nn.Module, teacher: nn.Module, pairs: dict[str, str]
) -> tuple[dict[str, tuple[Tensor | None, Tensor | None]], str | None]:
    """Return the channels that narrower layers take; unlisted layers stay random."""
    narrower = {
        layer: source
        for layer, source in pairs.items()
        if not _same_shapes(student.get_submodule(layer), teacher.get_submodule(source))
    }
    if not narrower:
        return {}, None
    try:
        spaces = ChannelSpaces(teacher)
    except ValueError as problem:
        return {}, f"its narrower layers start at random, since the teacher's channels cannot be followed ({problem})"
    wanted: dict[int, set[int]] = {}  # space -> the student's widths
    for layer, source in pairs.items():
        if source in spaces.layers:
            for number, width in zip(spaces.layers[source], _widths(student.get_submodule(layer)), strict=True):
                wanted.setdefault(number, set()).add(width)
    chosen: dict[int, Tensor | None] = {}
    for number, widths in wanted.items():
        space = spaces.space(number)
        if widths == {space.channels}:
            chosen[number] = None
        elif len(widths) == 1 and space.free and max(widths) < space.channels:
            chosen[number] = spaces.importance(number).topk(max(widths)).indices.sort().values
    keep = {
        layer: (chosen[writes], chosen[reads])
        for layer, source in narrower.items()
        for reads, writes in [spaces.layers.get(source, (-1, -1))]
        if reads in chosen and writes in chosen
    }
    return keep, None


def _widths(module: nn.Module) -> tuple[int, int]:
    """Return the numbers of channels that a layer reads and writes."""
    shape = next(iter(dict(_own_tensors(module)).values())).shape
    if len(shape) < 2 or (isinstance(module, nn.Conv2d) and module.groups > 1):
        return shape[0], shape[0]
    return shape[1], shape[0]


def _inside(module: nn.Module, path: str = "") -> tuple[nn.Module, str]:
    """Return the network inside pure wrappers, and its path."""
    children = list(module.named_children())
    if len(children) == 1 and not list(module.parameters(recurse=False)) and list(children[0][1].children()):
        return _inside(children[0][1], _join(path, children[0][0]))
    return module, path


def _layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in network.named_modules():
        if list(_own_tensors(module)):
            yield name, module


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _same_shapes(one: nn.Module, other: nn.Module) -> bool:
    theirs = dict(_own_tensors(other))
    return all(name in theirs and theirs[name].shape == tensor.shape for name, tensor in _own_tensors(one))


def _fit(one: nn.Module, other: nn.Module) -> bool:
    """Return whether a layer can come from another, whole or thinned: of the same kind and kernels, nowhere wider."""
    theirs = dict(_own_tensors(other))
    if type(one).__name__ != type(other).__name__ or getattr(one, "groups", 1) == 1 != getattr(other, "groups", 1):
        return False
    for name, tensor in _own_tensors(one):
        source = theirs.get(name)
        if source is None or source.ndim != tensor.ndim or source.shape[2:] != tensor.shape[2:]:
            return False
        if any(a > b for a, b in zip(tensor.shape, source.shape, strict=True)):
            return False
    return True


def _fit_inside(one: nn.Module, other: nn.Module) -> bool:
    """Return whether every layer of a block has one of the same name that fits; the source may have more of them."""
    layers, theirs = dict(_layers(one)), dict(_layers(other))
    return layers.keys() <= theirs.keys() and all(_fit(layer, theirs[name]) for name, layer in layers.items())


def _layer_count(row: nn.Module, unit: Unit) -> int:
    return sum(len(list(_layers(row.get_submodule(name)))) for name in unit.children)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
