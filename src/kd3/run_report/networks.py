"""Costs of teacher and student: parameters, multiply-adds, time on this machine."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kd3.models.multiply_adds import multiply_adds
from kd3.models.student import Student
from kd3.models.teacher import Teacher
from kd3.shipping.compare import Runner, milliseconds

BATCH = 64


@dataclass(frozen=True)
class Cost:
    """Of one network; times are medians for a batch of 1 and of 64, on one thread of this machine's CPU."""

    parameters: int
    multiply_adds: int  # for one image
    one: float | None = None  # milliseconds
    many: float | None = None  # milliseconds


def costs(teacher: Teacher | None, student: Student, *, latency: bool) -> tuple[Cost | None, Cost]:
    """Return the costs of both networks; times are taken in turns, on the CPU in float32, as PyTorch runs them."""
    assert student.input_size is not None
    networks: dict[str, nn.Module] = (
        {"student": student} if teacher is None else {"teacher": teacher, "student": student}
    )
    images = torch.randint(0, 256, (BATCH, 3, student.input_size, student.input_size), dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    times: dict[str, dict[int, float]] = {name: {} for name in networks}
    if latency:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            times = milliseconds({name: _runner(network) for name, network in networks.items()}, images)
        finally:
            torch.set_num_threads(threads)
    found = {
        name: Cost(
            sum(parameter.numel() for parameter in network.parameters()),
            multiply_adds(network, network.normalise(images[:1])),  # type: ignore[operator]
            times[name].get(1),
            times[name].get(BATCH),
        )
        for name, network in networks.items()
    }
    return found.get("teacher"), found["student"]


def _runner(network: nn.Module) -> Runner:
    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = network(network.normalise(images))  # type: ignore[operator]
        return logits

    return run
