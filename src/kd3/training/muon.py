"""Muon: momentum whose steps are orthogonal matrices, so that no direction of a weight learns faster than another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

# Of the quintic that pushes singular values towards 1 (Jordan, Muon); five rounds bring 0.01 to 1 between 0.7 and 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """Muon for weights that are matrices, SGD with Nesterov momentum for everything else.

    With the gradient G of a matrix (a convolution is one row for each output channel), M = mu M + G and
    U = orthogonalise(G + mu M), it moves by -lr max(1, rows/columns)^(1/2) U. Depthwise convolutions, biases and
    batch norms have no rows and columns to speak of and take SGD; so does what is not hidden: classifiers, embeddings,
    tables of positions. Weight decay is decoupled for matrices.

    torch.optim.Muon (from torch 2.9 on) takes two-dimensional parameters alone, one by one.

    Args:
        parameters: what is trained.
        hidden: those among them that may be moved as matrices (None: any); of these, those that are.
        lr: of SGD.
        matrix_lr: of matrices. A step moves a matrix by this much in every direction, whatever its gradient's size.
        momentum, weight_decay: of SGD; matrices share the decay.
        matrix_momentum: mu.

    Source: Jordan et al., Muon: an optimizer for hidden layers in neural networks (2024).
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        hidden: Iterable[Tensor] | None = None,
        lr: float,
        matrix_lr: float,
        momentum: float,
        matrix_momentum: float,
        weight_decay: float,
    ) -> None:
        parameters = list(parameters)
        allowed = {id(parameter) for parameter in (parameters if hidden is None else hidden)}
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        for parameter in parameters:
            (matrices if id(parameter) in allowed and is_matrix(parameter) else others).append(parameter)
        groups = [
            {"params": matrices, "matrices": True, "lr": matrix_lr, "momentum": matrix_momentum},
            {"params": others, "matrices": False, "lr": lr, "momentum": momentum},
        ]
        super().__init__([group for group in groups if group["params"]], {"weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            (self._matrices if group["matrices"] else self._others)(parameters, group)

    def _others(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        if not parameters:
            return
        gradients = torch._foreach_add([_gradient(p) for p in parameters], parameters, alpha=group["weight_decay"])
        moved = self._moved(parameters, list(gradients), group["momentum"])
        torch._foreach_add_(parameters, moved, alpha=-group["lr"])

    def _matrices(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        moved = self._moved(parameters, [_gradient(p) for p in parameters], group["momentum"])
        by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for parameter, move in zip(parameters, moved, strict=True):
            flat = move.flatten(1)
            by_shape[flat.shape[0], flat.shape[1]].append((parameter, flat))
        for (rows, columns), alike in by_shape.items():
            steps = orthogonalise(torch.stack([move for _, move in alike]))
            size = group["lr"] * max(1.0, rows / columns) ** 0.5
            for (parameter, _), step in zip(alike, steps, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(step.view(parameter.shape).to(parameter.dtype), alpha=-size)

    def _moved(self, parameters: list[Tensor], gradients: list[Tensor], momentum: float) -> list[Tensor]:
        """Return Nesterov's look ahead, G + mu M, after M = mu M + G."""
        for parameter in parameters:
            if "momentum" not in self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        kept = [self.state[parameter]["momentum"] for parameter in parameters]
        if not kept:
            return []
        torch._foreach_mul_(kept, momentum)
        torch._foreach_add_(kept, gradients)
        return list(torch._foreach_add(gradients, kept, alpha=momentum))


def is_matrix(parameter: Tensor) -> bool:
    """Return whether a weight maps several inputs to several outputs: linear layers and ordinary convolutions."""
    return parameter.ndim >= 2 and parameter.shape[0] > 1 and parameter.shape[1] > 1


def orthogonalise(matrices: Tensor) -> Tensor:
    """Return the nearest matrices with orthonormal rows or columns, roughly: singular values between 0.7 and 1.2.

    Shapes: (N, rows, columns) -> (N, rows, columns), bfloat16.
    """
    a, b, c = COEFFICIENTS
    x: Tensor = matrices.bfloat16()
    x = x / x.flatten(1).float().norm(dim=1).clamp_min(1e-7).view(-1, 1, 1).bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
