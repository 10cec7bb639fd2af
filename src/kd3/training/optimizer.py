"""Construction of the optimizer from the settings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from kd3.config.training import TrainSettings
from kd3.training.muon import Muon
from kd3.training.schedule import learning_rate

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
