"""Statistics of batch norms: read, counted, blended, restored, synced over ranks, and the images that they remember."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from kd3.models.head import evaluating
from kd3.runtime.errors import KD3Error
from kd3.runtime.ranks import Ranks


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations of some values, per channel."""

    count: int  # values a channel
    mean: Tensor  # (C,) float64
    squares: Tensor  # (C,) float64: sum of (value - mean)^2

    @property
    def variance(self) -> Tensor:
        """Unbiased variance, (C,) float64, as `running_var` is; 0 of a single value."""
        return self.squares / max(self.count - 1, 1)

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both sets of values together.

        Source: Chan, Golub, LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample
        Variances (1979), equation 2.1.
        """
        count = self.count + other.count
        gap = other.mean - self.mean
        return Moments(
            count,
            self.mean + gap * (other.count / count),
            self.squares + other.squares + gap.square() * (self.count * other.count / count),
        )


def moments_of(values: Tensor) -> Moments:
    """Return the moments of a batch over all but its second dimension. Shapes: (B, C) or (B, C, ...) -> (C,).

    Within a batch float32 is enough, since deviations are taken from the batch's own mean.
    """
    values = values.float()
    axes = [axis for axis in range(values.ndim) if axis != 1]
    count = values.numel() // values.shape[1]
    mean = values.mean(dim=axes, keepdim=True)
    squares = (values - mean).square_().sum(dim=axes)
    return Moments(count, mean.flatten().to(torch.float64), squares.to(torch.float64))


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


class LayerStatistics(NamedTuple):
    """Statistics of one batch norm, per channel."""

    mean: Tensor  # (C,) float32
    variance: Tensor  # (C,) float32, unbiased


Statistics = Mapping[str, LayerStatistics]  # by module path, in the network's order


def normalises(network: nn.Module) -> bool:
    """Return whether any layer normalises its inputs: a batch, group, layer or instance norm, of any library."""
    return any("norm" in type(part).__name__.lower() for part in network.modules())


def remembering_norms(network: nn.Module) -> dict[str, nn.Module]:
    """Return the batch norms that keep running statistics, by module path; empty where there are none."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, (_BatchNorm, SyncedBatchNorm))
        and module.running_mean is not None
        and module.running_var is not None
    }


def remembered(network: nn.Module) -> dict[str, LayerStatistics]:
    """Return a copy of the running statistics of every batch norm."""
    return {
        name: LayerStatistics(norm.running_mean.detach().float().clone(), norm.running_var.detach().float().clone())  # type: ignore[operator]
        for name, norm in remembering_norms(network).items()
    }


def counted(network: nn.Module, batches: Iterable[Tensor]) -> dict[str, LayerStatistics]:
    """Return the images' statistics in every batch norm, with each layer normalised by its own batch.

    Every other layer runs as in evaluation; the network is unchanged afterwards. Batches are normalised
    images (B, 3, H, W), B > 1, of one size; their means and variances are averaged.

    Source: AdaBN (arXiv 1603.04779).
    """
    norms = remembering_norms(network)
    before = {name: (norm.momentum, norm.num_batches_tracked) for name, norm in norms.items()}
    kept = remembered(network)
    try:
        with evaluating(network), torch.no_grad():
            for norm in norms.values():
                norm.train()
                norm.momentum = None  # type: ignore[assignment]  # the plain mean over batches
                norm.num_batches_tracked = torch.zeros_like(norm.num_batches_tracked)  # type: ignore[arg-type]
            for images in batches:
                network(images)
        return remembered(network)
    finally:
        set_statistics(network, kept)
        for name, norm in norms.items():
            norm.momentum, norm.num_batches_tracked = before[name]


def blended(old: Statistics, new: Statistics, share: float) -> dict[str, LayerStatistics]:
    """Return (1 - share) * old + share * new, of means and of variances; share in [0, 1].

    Source: Schneider et al., Improving robustness against common corruptions by covariate shift
    adaptation (arXiv 2006.16971), with the share given directly instead of by a number of images.
    """
    if share == 0:
        return dict(old)
    return {
        name: LayerStatistics(
            torch.lerp(old[name].mean, new[name].mean, share), torch.lerp(old[name].variance, new[name].variance, share)
        )
        for name in old
    }


def set_statistics(network: nn.Module, statistics: Statistics) -> None:
    """Make the batch norms normalise by these statistics in evaluation.

    Raises:
        KeyError: a batch norm is not among them.
    """
    for name, norm in remembering_norms(network).items():
        norm.running_mean.copy_(statistics[name].mean)  # type: ignore[operator]
        norm.running_var.copy_(statistics[name].variance)  # type: ignore[operator]


def mean_distance(seen: Statistics, expected: Statistics) -> float:
    """Return the distance between statistics: the mean over layers and channels of a squared distance.

    ((mu - m)^2 + (s - r)^2) / r^2 for each channel, with (mu, s) seen and (m, r) expected: the squared
    2-Wasserstein distance of Gaussians in units of the expected variance. 0 is the same.
    """
    if not expected:
        return 0.0
    distances = []
    for name, (mean, variance) in expected.items():
        scale = variance + 1e-5
        gap = (seen[name].mean - mean).square() + (seen[name].variance.sqrt() - variance.sqrt()).square()
        distances.append((gap / scale).mean())
    return float(torch.stack(distances).mean())
