"""How much each block of a teacher matters, measured on images without labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kd3.inheritance.plan import Importance
from kd3.models.teacher import Teacher

Rule = Literal["change", "recovery"]


def measured_importance(teacher: Teacher, images: Tensor, rule: Rule) -> Importance:
    """Return a measure of the blocks of any row of the teacher.

    `change`: how far a block moves its input, |block(x) - x|^2 / |x|^2 (a block that moves it little can go).
    `recovery`: how far the teacher's pooled features end from their place when the linear map (1 x 1) that fits the
    block best stands in for it: what the rest cannot recover. Blocks whose input and output differ in shape cannot be
    left out and matter most.

    Shapes: images (B, 3, H, W), normalised. Source: PRACTISE (arXiv 2202.07861); `recovery` is its closed form.
    """
    network = teacher.module

    def run() -> Tensor:
        with torch.no_grad():
            return teacher.outputs(images).features.float().mean((2, 3)) if teacher.head else teacher(images).float()

    def of(path: str) -> list[float]:
        row = network.get_submodule(path)
        blocks = [block for _, block in row.named_children()]
        seen: dict[int, tuple[Tensor, Tensor]] = {}

        def hook(number: int) -> Callable[..., None]:
            def keep(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
                if inputs and isinstance(output, Tensor) and inputs[0].shape == output.shape:
                    seen[number] = (inputs[0].detach().float(), output.detach().float())

            return keep

        handles = [block.register_forward_hook(hook(number)) for number, block in enumerate(blocks)]
        try:
            expected = run()
        finally:
            for handle in handles:
                handle.remove()
        found: dict[int, float] = {}
        for number, (before, after) in seen.items():
            if rule == "change":
                found[number] = float((after - before).square().mean() / before.square().mean().clamp_min(1e-12))
                continue
            linear = _best_linear(before, after)
            handle = blocks[number].register_forward_hook(lambda _, inputs, __, linear=linear: linear(inputs[0]))
            try:
                found[number] = float((run() - expected).square().mean() / expected.square().mean())
            finally:
                handle.remove()
        largest = 2 * max(found.values(), default=1.0)
        return [found.get(number, largest) for number in range(len(blocks))]

    return of


def _best_linear(before: Tensor, after: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the affine map over channels that takes one to the other with the least square error."""
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
