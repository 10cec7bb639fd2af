"""Batch norms over the batch of all ranks. PyTorch's own are GPU-only; these run anywhere."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd3.errors import KD3Error
from kd3.ranks import Ranks

KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class SyncedBatchNorm(nn.Module):
    """A batch norm that trains with the mean and variance over all ranks' images; evaluation is as usual.

    It takes over the parameters, buffers and names of another one. All ranks must have parts of one size.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d, ranks: Ranks) -> None:
        super().__init__()
        self.eps, self.momentum, self.ranks = norm.eps, norm.momentum, ranks
        self.track_running_stats = norm.track_running_stats
        self.register_parameter("weight", norm.weight)
        self.register_parameter("bias", norm.bias)
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))
        self.train(norm.training)

    def forward(self, images: Tensor) -> Tensor:
        """Return the batch normalised, (B, C, ...) -> the same."""
        if not self.training and self.running_mean is not None:
            return F.batch_norm(images, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        axes = [axis for axis in range(images.dim()) if axis != 1]
        place = [1, -1] + [1] * (images.dim() - 2)
        with torch.autocast(images.device.type, enabled=False):
            values = images if images.dtype == torch.float64 else images.float()
            mean = self.ranks.mean(values.mean(axes))
            centred = values - mean.view(place)
            # From centred values: a difference of squares would lose precision.
            variance = self.ranks.mean(centred.square().mean(axes))
            if self.training and self.track_running_stats:
                self._remember(mean.detach(), variance.detach(), self.ranks.count * images[:, 0].numel())
            result = centred * (variance + self.eps).rsqrt().view(place)
            if self.weight is not None and self.bias is not None:
                result = result * self.weight.view(place) + self.bias.view(place)
        return result.to(images.dtype)

    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_((variance * (count / max(count - 1, 1))).to(self.running_var), share)


def sync_batch_norms(module: nn.Module, ranks: Ranks, device: torch.device) -> None:
    """Replace a network's batch norms, in place, by ones synced over all ranks.

    Raises:
        KD3Error: there is a batch norm of an unknown kind.
    """
    for name, norm in module.named_modules():
        if isinstance(norm, KINDS) and type(norm) not in KINDS:
            raise KD3Error(
                f"the batch norm {name} is a {type(norm).__name__}, which cannot be synced over several processes; "
                f"use --batch-norm local"
            )
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        return
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, KINDS):
                setattr(parent, name, SyncedBatchNorm(child, ranks))
