"""The optimiser that the settings ask for."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from kd3.config.training import TrainSettings
from kd3.training.muon import Muon
from kd3.training.schedule import learning_rate


def build_optimizer(parameters: Iterable[Tensor], settings: TrainSettings) -> torch.optim.Optimizer:
    """Return the optimiser of these parameters; its groups carry their share of the schedule as `relative_lr`."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "muon":
        optimizer = Muon(
            trained,
            lr=settings.peak,
            matrix_lr=settings.matrix_peak,
            momentum=settings.momentum,
            matrix_momentum=settings.matrix_momentum,
            weight_decay=settings.weight_decay,
        )
    else:
        optimizer = torch.optim.SGD(
            trained,
            lr=settings.peak,
            momentum=settings.momentum,
            nesterov=settings.nesterov and settings.momentum > 0,
            weight_decay=settings.weight_decay,
            fused=True,
        )
    for group in optimizer.param_groups:
        group["relative_lr"] = group["lr"] / settings.peak
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, total_steps: int, settings: TrainSettings) -> None:
    """Move the learning rate of every group to that of a step."""
    rate = learning_rate(step, total_steps, settings)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["relative_lr"]
