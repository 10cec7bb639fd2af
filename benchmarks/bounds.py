"""Lower bounds of the cost: only networks and optimizer, on tensors already in place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from kd3.methods import Method
from kd3.runtime.compute import Compute


def bare_step(method: Method, compute: Compute, *, batch: int, size: int, views: int) -> Callable[[], None]:
    """Return a call for a training step without data, augmentation, selection or full losses.

    Teacher forward, `views` student forwards with their backward, projector and classifier on the
    first, the optimizer: the same modules, precision and layout as the measured method.
    """
    student, teacher = method.student, method.teacher
    images = [
        torch.randn(batch, 3, size, size, device=compute.device).contiguous(memory_format=torch.channels_last)
        for _ in range(views)
    ]
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-4, momentum=0.9, weight_decay=5e-4, fused=True)
    student.train()

    def step() -> None:
        with compute.autocast():
            teacher(images[0])
            loss = student(images[0]).mean()
            for view in images[1:]:
                loss = loss + student.features(view).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def counted(step: Callable[[], None]) -> int:
    """Return the floating-point operations of a call, as torch counts them: two for each multiply-add."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def bare_scoring(network: torch.nn.Module, compute: Compute, *, batch: int, size: int) -> Callable[[], None]:
    """Return a call that runs a network forward once on a batch in place."""
    images = torch.randn(batch, 3, size, size, device=compute.device).contiguous(memory_format=torch.channels_last)
    network.eval()

    def score() -> None:
        with torch.inference_mode(), compute.autocast():
            network(images)

    return score
