"""Control over the images that update the running statistics of batch norms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kd3.models.synced_batch_norm import SyncedBatchNorm


@contextmanager
def running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Use batch statistics in training without updating the running ones.

    Use it for images unlike those of the evaluation, such as altered views.
    """
    norms = [part for part in module.modules() if isinstance(part, (_BatchNorm, SyncedBatchNorm))]
    remembering = [norm for norm in norms if norm.track_running_stats]
    for norm in remembering:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in remembering:
            norm.track_running_stats = True
