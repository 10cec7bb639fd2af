"""Statistics of a network's batch norms: read, estimated on other images, blended, restored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kd3.models.head import evaluating
from kd3.models.synced_batch_norm import SyncedBatchNorm


class LayerStatistics(NamedTuple):
    """Statistics of one batch norm, per channel."""

    mean: Tensor  # (C,) float32
    variance: Tensor  # (C,) float32, unbiased


Statistics = Mapping[str, LayerStatistics]  # by module path, in the network's order


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
