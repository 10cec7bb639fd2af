"""A student given its teacher's weights, and the importance of each block, measured on images without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kd3.inheritance.plan import Importance, Inheritance, Part, inherit, plan_inheritance
from kd3.models.head import hooked
from kd3.models.teacher import Teacher
from kd3.runtime import console
from kd3.runtime.errors import KD3Error

Rule = Literal["change", "recovery"]
Ends = tuple[nn.Module, nn.Module]  # the first and the last module of a block


def measured_importance(teacher: Teacher, images: Tensor, rule: Rule) -> Importance:
    """Return a function that measures the blocks of any row of the teacher, as `block_importance` does.

    Blocks whose input and output differ in shape cannot be removed and rank highest.
    """

    def of(path: str) -> list[float]:
        row = [block for _, block in teacher.module.get_submodule(path).named_children()]
        found = block_importance(teacher, images, rule, [(block, block) for block in row])
        largest = 2 * max((value for value in found if value is not None), default=1.0)
        return [largest if value is None else value for value in found]

    return of


def block_importance(teacher: Teacher, images: Tensor, rule: Rule, blocks: Sequence[Ends]) -> list[float | None]:
    """Return the importance of each block of the teacher; None for one that changes the shape.

    `change`: a block's relative change of its input, |block(x) - x|^2 / |x|^2 (small: removable).
    `recovery`: the change of the teacher's pooled features when the best-fitting linear map (1 x 1) replaces the block:
    the error that the rest cannot recover.

    Shapes: images (B, 3, H, W), normalised. Source: PRACTISE (arXiv 2202.07861); `recovery` is its closed form.
    """
    before: dict[int, Tensor] = {}
    after: dict[int, Tensor] = {}

    def run() -> Tensor:
        with torch.no_grad():
            return teacher.outputs(images).features.float().mean((2, 3)) if teacher.head else teacher(images).float()

    def enter(number: int) -> Callable[..., None]:
        def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                before[number] = inputs[0].detach().float()

        return keep

    def leave(number: int) -> Callable[..., None]:
        def keep(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                after[number] = output.detach().float()

        return keep

    entering = (first.register_forward_pre_hook(enter(number)) for number, (first, _) in enumerate(blocks))
    leaving = (last.register_forward_hook(leave(number)) for number, (_, last) in enumerate(blocks))
    with hooked(entering), hooked(leaving):
        expected = run()
    found: list[float | None] = []
    for number, (first, last) in enumerate(blocks):
        x, y = before.pop(number, None), after.pop(number, None)
        if x is None or y is None or x.shape != y.shape:
            found.append(None)
        elif rule == "change":
            found.append(float((y - x).square().mean() / x.square().mean().clamp_min(1e-12)))
        else:
            with _standing_in(first, last, _best_linear(x, y)):
                found.append(float((run() - expected).square().mean() / expected.square().mean().clamp_min(1e-12)))
    return found


@contextmanager
def _standing_in(first: nn.Module, last: nn.Module, linear: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Replace a block's output by a linear map of its input."""
    given: list[Tensor] = []

    def enter(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        given[:] = [inputs[0]]

    def leave(_: nn.Module, __: tuple[Any, ...], output: Any) -> Tensor:
        return linear(given[0])

    with first.register_forward_pre_hook(enter), last.register_forward_hook(leave):
        yield


def _best_linear(before: Tensor, after: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the affine map over channels from one to the other by least squares."""
    axis = 1 if before.ndim == 4 else -1  # (B, C, h, w), or (B, tokens, C)

    def rows(values: Tensor) -> Tensor:
        return values.movedim(axis, -1).reshape(-1, values.shape[axis])

    x, y = rows(before).double(), rows(after).double()
    x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    gram = x.T @ x
    gram.diagonal().add_(1e-6 * gram.diagonal().mean())
    weight = torch.linalg.solve(gram, x.T @ y).to(before.dtype)

    def apply(values: Tensor) -> Tensor:
        moved = values.movedim(axis, -1)
        mapped = moved.float() @ weight[:-1] + weight[-1]
        result: Tensor = mapped.to(values.dtype).movedim(-1, axis)
        return result

    return apply


Blocks = Literal["even", "change", "recovery"]


def planned(student: nn.Module, teacher: Teacher, sample: Tensor, *, blocks: Blocks) -> Inheritance:
    """Return the parts that a student can inherit; sample (B, 3, H, W) normalised, for measured blocks."""
    importance = None if blocks == "even" else measured_importance(teacher, sample, blocks)
    return plan_inheritance(student, teacher.module, importance=importance)


@dataclass(frozen=True)
class Row:
    """A block of the student, or a layer outside blocks: a line of the displayed table."""

    part: str
    source: str  # module path in the teacher; several, or "" for a random start
    how: str  # whole, channels, random
    parameters: int
    inherited: int  # of them


def rows(inheritance: Inheritance) -> list[Row]:
    """Return the parts of a student grouped by block."""
    groups: dict[str, list[Part]] = {}
    for part in inheritance.parts:
        groups.setdefault(_block(part.layer), []).append(part)
    found = []
    for name, parts in groups.items():
        sources = dict.fromkeys(_block(part.source) for part in parts if part.source is not None)
        hows = dict.fromkeys(part.how for part in parts)
        given = sum(part.parameters for part in parts if part.source is not None)
        total = sum(part.parameters for part in parts)
        found.append(Row(name, ", ".join(sources), " and ".join(hows), total, given))
    return found


def _block(layer: str) -> str:
    """Return the path of a layer's block, up to its number; otherwise the layer's own path."""
    names = layer.split(".")
    numbers = [place for place, name in enumerate(names[:-1]) if name.isdigit()]
    return ".".join(names[: numbers[0] + 1]) if numbers else layer


def inherited(
    student: nn.Module, teacher: Teacher, sample: Tensor, *, blocks: Blocks, name: str, must: bool = False
) -> Inheritance | None:
    """Copy all fitting parts into a student; return None, with a note, if too little fits.

    Raises:
        KD3Error: so little fits, and the student `must` inherit.
    """
    inheritance = planned(student, teacher, sample, blocks=blocks)
    if inheritance.is_empty and must:
        raise KD3Error(
            f"{name} cannot inherit from teacher {teacher.name}: only {100 * inheritance.share:.0f}% of its parameters "
            f"fit; use --init random, or a student of the teacher's family (see kd3 inspect --student)"
        )
    if inheritance.is_empty:
        console.info(f"{name} starts from random weights: its parts do not fit those of teacher {teacher.name}")
        return None
    inherit(student, teacher.module, inheritance)
    summary = f"{name} inherits {100 * inheritance.share:.0f}% of its parameters from teacher {teacher.name}"
    console.info(summary + (f"; {inheritance.problem}" if inheritance.problem else ""))
    return inheritance
