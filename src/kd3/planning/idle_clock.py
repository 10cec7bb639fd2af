"""Seconds that work would take on an otherwise idle machine."""

from __future__ import annotations

import time

import torch


def idle_seconds(device: torch.device) -> float:
    """Return a clock's reading, of which differences count.

    On the CPU: the time that this process was at work, shared by its threads, so that other work on the machine hardly
    counts. On a GPU: the wall clock, once the GPU has done what it was given.
    """
    if device.type == "cpu":
        return time.process_time() / torch.get_num_threads()
    torch.cuda.synchronize(device)
    return time.perf_counter()
