"""Prepare a method for training by several processes at once."""

from __future__ import annotations

import torch

from kd3.compute import Compute
from kd3.config.training import TrainSettings
from kd3.methods.base import Method
from kd3.models.synced_batch_norm import sync_batch_norms

PROBE_IMAGES = 2


def make_ready(method: Method, settings: TrainSettings, compute: Compute) -> None:
    """Tell a method of its ranks, sync its batch norms if asked to, and freeze parameters outside its loss.

    DDP waits for every registered gradient; a missing one would stall the run.

    Raises:
        KD3Error: a batch norm cannot be synced.
    """
    method.ranks = compute.ranks
    if compute.ranks.count == 1:
        return
    if settings.batch_norm == "sync":
        sync_batch_norms(method, compute.ranks, compute.device)
    compute.place(method)
    buffers = [buffer.clone() for buffer in method.buffers()]
    side = method.student.input_size
    channels = method.student.normalise.channels
    images = torch.randn(PROBE_IMAGES, channels, side, side, generator=torch.Generator().manual_seed(0)).to(
        compute.device
    )
    labels = torch.zeros(PROBE_IMAGES, dtype=torch.int64, device=compute.device) if method.needs_labels else None
    with compute.autocast(), torch.random.fork_rng(devices=[]):
        method(images, torch.Generator(compute.device).manual_seed(0), None, labels).loss.backward()
    for parameter in method.parameters():
        if parameter.grad is None:
            parameter.requires_grad_(False)
        parameter.grad = None
    for buffer, before in zip(method.buffers(), buffers, strict=True):
        buffer.copy_(before)
