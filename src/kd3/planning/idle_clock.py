"""Seconds that work would take on an otherwise idle machine."""

from __future__ import annotations

import time

import torch


def idle_seconds(device: torch.device) -> float:
    """Return a clock's reading, for differences.

    On the CPU: this process's CPU time divided by its threads, so that other work on the machine hardly counts. On a
    GPU: the wall clock, after synchronisation.
    """
    if device.type == "cpu":
        return time.process_time() / torch.get_num_threads()
    torch.cuda.synchronize(device)
    return time.perf_counter()
