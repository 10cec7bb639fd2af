"""Comparison of rates on a noisy machine: the sides take turns, and medians are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Rate:
    """One side's items per second in each round."""

    rounds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The median round."""
        return statistics.median(self.rounds)

    def to_dict(self) -> dict[str, Any]:
        """Return the median, the extremes and every turn."""
        return {
            "median": round(self.median, 1),
            "slowest": round(min(self.rounds), 1),
            "fastest": round(max(self.rounds), 1),
            "turns": [round(rate, 1) for rate in self.rounds],
        }


Side = tuple[Callable[[], object], int]  # a call, and its number of items


def alternate(sides: dict[str, Side], *, rounds: int, seconds: float) -> dict[str, Rate]:
    """Return each side's rate: each side is called for about the given seconds per round, at least once."""
    for call, _ in sides.values():
        call()
    settle()
    rates = {name: Rate() for name in sides}
    for _ in range(rounds):
        for name, (call, items) in sides.items():
            calls, start = 0, time.perf_counter()
            while calls == 0 or time.perf_counter() - start < seconds:
                call()
                calls += 1
            settle()
            rates[name].rounds.append(calls * items / (time.perf_counter() - start))
    return rates


def settle() -> None:
    """Wait until an accelerator has finished its work."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
