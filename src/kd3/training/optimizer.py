"""The optimizer of the settings, and Muon: momentum with orthogonal steps, so all directions learn alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from kd3.config.training import TrainSettings
from kd3.training.budget import learning_rate

# Coefficients of the quintic that pushes singular values towards 1 (Jordan, Muon); five rounds bring 0.01 to 1 between
# 0.7 and 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
RESTART = 2  # rounds after which products in TF32 are recomputed, before their errors grow
SMALLEST = 1e-14  # of a squared norm


class Muon(torch.optim.Optimizer):
    """Muon for weights that are matrices, SGD with Nesterov momentum for everything else.

    With the gradient G of a matrix (a convolution is one row for each output channel), M = mu M + G and
    U = orthogonalise(G + mu M), it moves by -lr max(1, rows/columns)^(1/2) U. Depthwise convolutions, biases and batch
    norms are no matrices and use SGD; so do weights that are not hidden: classifiers, embeddings, position tables.
    Weight decay is decoupled for matrices.

    torch.optim.Muon (from torch 2.9 on) takes two-dimensional parameters only. Learning rates may be tensors,
    so that a recorded step reads new values.

    Args:
        parameters: the trained parameters.
        hidden: those that Muon may move, if they are matrices (None: any).
        lr: of SGD.
        matrix_lr: of matrices. A step moves a matrix by this much in every direction, for any gradient size.
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
        moved = list(self._moved(parameters, list(gradients), group["momentum"]))
        if isinstance(group["lr"], Tensor):
            torch._foreach_mul_(moved, -group["lr"])
            torch._foreach_add_(parameters, moved)
        else:
            torch._foreach_add_(parameters, moved, alpha=-group["lr"])

    def _matrices(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        moved = self._moved(parameters, [_gradient(p) for p in parameters], group["momentum"])
        steps = orthogonalise([as_matrix(move) for move in moved], scale=-group["lr"])
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, [_as_weight(step, p) for step, p in zip(steps, parameters, strict=True)])

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


def as_matrix(weight: Tensor) -> Tensor:
    """Return a weight, or its gradient, with a row for each output; a view of it in channels_last.

    Shapes: (rows, ...) -> (rows, columns). The order of the columns does not matter here.
    """
    return weight.permute(0, 2, 3, 1).flatten(1) if weight.ndim == 4 else weight.flatten(1)


def _as_weight(matrix: Tensor, like: Tensor) -> Tensor:
    """Return a view of the matrix in the shape of the weight, the inverse of `as_matrix`."""
    if like.ndim != 4:
        return matrix.view(like.shape)
    outputs, inputs, height, width = like.shape
    return matrix.view(outputs, height, width, inputs).permute(0, 3, 1, 2)


def orthogonalise(matrices: Sequence[Tensor], *, scale: float | Tensor = 1.0) -> list[Tensor]:
    """Return the nearest matrices with orthonormal rows or columns, roughly: singular values between 0.7 and 1.2.

    Each is multiplied by `scale` max(1, rows/columns)^(1/2). An odd polynomial of X is one of X X^T, times X, so
    the rounds run on squares of the shorter side: matrices of one shape share the products with X, and those of one
    shorter side share the rounds.

    Shapes: (rows, columns) each -> the same, float32.

    Source: Newton-Schulz as in Jordan, Muon (2024), written by the Gram matrix.
    """
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for place, matrix in enumerate(matrices):
        alike[matrix.shape[0], matrix.shape[1]].append(place)
    lying: dict[tuple[int, int], Tensor] = {}
    sides: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for shape, places in alike.items():
        stack = torch.stack([matrices[place] for place in places]).float()
        lying[shape] = stack.mT if shape[0] > shape[1] else stack
        sides[min(shape)].append(shape)
    results: list[Tensor] = [torch.empty(0)] * len(matrices)
    for shapes in sides.values():
        for shape, stack in zip(shapes, _orthogonal([lying[shape] for shape in shapes]), strict=True):
            upright = stack.mT.contiguous() if shape[0] > shape[1] else stack
            steps = upright * (scale * max(1.0, shape[0] / shape[1]) ** 0.5)
            for place, step in zip(alike[shape], steps.unbind(), strict=True):
                results[place] = step
    return results


def _orthogonal(stacks: list[Tensor]) -> list[Tensor]:
    """Shapes: (n, rows, columns) each, rows <= columns and the same -> the same."""
    counts = [len(stack) for stack in stacks]

    def grams() -> Tensor:
        return torch.cat([stack @ stack.mT for stack in stacks])

    def times(factor: Tensor) -> list[Tensor]:
        return [part @ stack for part, stack in zip(torch.split(factor, counts), stacks, strict=True)]

    gram = grams()
    root = gram.diagonal(dim1=1, dim2=2).sum(1).clamp_min(SMALLEST).rsqrt().view(-1, 1, 1)
    gram = gram * root.square()
    if torch.get_float32_matmul_precision() == "highest":
        return times(_polynomial(gram, ROUNDS) * root)
    stacks = times(_polynomial(gram, RESTART) * root)
    return times(_polynomial(grams(), ROUNDS - RESTART))


def _polynomial(gram: Tensor, rounds: int) -> Tensor:
    """Return P with P X being X after so many rounds, of X X^T. Shapes: (N, rows, rows) -> the same."""
    a, b, c = COEFFICIENTS
    result: Tensor | None = None
    for number in range(rounds):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        result = factor if result is None else factor @ result
        if number < rounds - 1:
            gram = factor @ gram @ factor
    assert result is not None
    return result


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


ADAM_LR = 1e-3  # of DFND's public code, for its noise matrix; constant


class Beside(torch.optim.Optimizer):
    """Two optimizers with separate parameters that step and are saved as one."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        self.parts = (first, second)
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._join()

    def _join(self) -> None:
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step with both."""
        assert closure is None
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of both."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of both.

        Raises:
            KeyError, ValueError: it is another optimizer's, or of other parameters.
        """
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._join()


def build_optimizer(
    parameters: Iterable[Tensor],
    settings: TrainSettings,
    *,
    hidden: Iterable[Tensor] | None = None,
    by_adam: Iterable[Tensor] = (),
) -> torch.optim.Optimizer:
    """Return the optimizer of these parameters; `relative_lr` of a group scales the schedule.

    `hidden` are those that muon may move as matrices (None: any that is one); `by_adam` those that Adam moves, at a
    constant rate: a group without `relative_lr`.
    """
    apart = {id(parameter) for parameter in by_adam}
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    main = _main([parameter for parameter in trained if id(parameter) not in apart], settings, hidden)
    for group in main.param_groups:
        group["relative_lr"] = group["lr"] / settings.peak
    adams = [parameter for parameter in trained if id(parameter) in apart]
    return (
        Beside(main, torch.optim.Adam(adams, lr=ADAM_LR, capturable=all(p.is_cuda for p in adams))) if adams else main
    )


def _main(trained: list[Tensor], settings: TrainSettings, hidden: Iterable[Tensor] | None) -> torch.optim.Optimizer:
    if settings.optimizer == "muon":
        return Muon(
            trained,
            hidden=hidden,
            lr=settings.peak,
            matrix_lr=settings.matrix_peak,
            momentum=settings.momentum,
            matrix_momentum=settings.matrix_momentum,
            weight_decay=settings.weight_decay,
        )
    return torch.optim.SGD(
        trained,
        lr=settings.peak,
        momentum=settings.momentum,
        nesterov=settings.nesterov and settings.momentum > 0,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def set_learning_rate(
    optimizer: torch.optim.Optimizer,
    step: int,
    total_steps: int,
    settings: TrainSettings,
    progress: float | None = None,
) -> None:
    """Set a step's learning rate in every group that follows the schedule; see `learning_rate`."""
    rate = learning_rate(step, total_steps, settings, progress)
    for group in optimizer.param_groups:
        if "relative_lr" in group:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * group["relative_lr"])
            else:
                group["lr"] = rate * group["relative_lr"]


def hold_rates(optimizer: torch.optim.Optimizer, device: torch.device | None) -> None:
    """Keep scheduled learning rates as tensors on a device, for recorded steps; None: as numbers.

    Shapes: each () float32.
    """
    for group in optimizer.param_groups:
        if "relative_lr" in group:
            rate = float(group["lr"])
            group["lr"] = rate if device is None else torch.full((), rate, device=device)
