"""Distance of a pool's statistics from those in the teacher's batch norms, which remember its training data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kd3.domain_shift.distances import diagonal_wasserstein
from kd3.models.moments import Moments, moments_of

LAST_LAYERS = 3  # closest to the classifier
_Norm = nn.BatchNorm1d | nn.BatchNorm2d


@dataclass(frozen=True)
class LayerShift:
    """Shift in one batch norm."""

    layer: str  # path of the module
    channels: int
    distance: float  # squared 2-Wasserstein, in units of the layer's own variance, mean over channels; 0 is the same
    mean_part: float  # the means' part of it; the rest comes from the deviations


class BatchNormWatch:
    """Collects mean and variance of the inputs of a network's batch norms, in constant memory.

    Only those with running statistics are watched; without any, `layers` is empty. A module that runs several times per
    image counts each time.
    """

    def __init__(self, network: nn.Module) -> None:
        self.norms = {
            name: module
            for name, module in network.named_modules()
            if isinstance(module, _Norm) and module.running_mean is not None and module.running_var is not None
        }
        self.moments: dict[str, Moments] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Collect from every forward pass within the context."""
        handles = [norm.register_forward_pre_hook(self._hook(name)) for name, norm in self.norms.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Any:
        def collect(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            with torch.no_grad(), torch.autocast(arguments[0].device.type, enabled=False):
                new = moments_of(arguments[0])
            seen = self.moments.get(name)
            self.moments[name] = new if seen is None else seen.merge(new)

        return collect

    def layers(self) -> list[LayerShift]:
        """Return the distance of each watched layer's input from its running statistics, in the network's order.

        Per channel, with (mu, s) seen and (m, r) remembered: ((mu - m)^2 + (s - r)^2) / (r^2 + eps),
        eps the layer's own; then the mean over channels. So layers of any scale compare.

        Source: batch-norm statistics as a stand-in for the lost data as in DeepInversion (arXiv
        1912.08795), equation 4; the distance is the one between Gaussians.
        """
        found = []
        for name, norm in self.norms.items():
            if name not in self.moments:
                continue  # it did not run
            seen = self.moments[name]
            assert norm.running_mean is not None
            assert norm.running_var is not None
            mean, variance = norm.running_mean.double(), norm.running_var.double()
            scale = variance + norm.eps
            whole = diagonal_wasserstein(seen.mean, seen.variance, mean, variance, scale=scale)
            from_means = ((seen.mean - mean).square() / scale).mean()
            found.append(LayerShift(name, len(mean), float(whole), float(from_means)))
        return found


@dataclass(frozen=True)
class BatchNormShift:
    """All batch norms of a teacher, and their summary."""

    layers: list[LayerShift]
    mean: float  # over layers
    last: float  # over the last `LAST_LAYERS`
    worst: str  # the layer of the largest distance


def summed_up(layers: list[LayerShift]) -> BatchNormShift | None:
    """Return the layers with their means; None without batch norms."""
    if not layers:
        return None
    distances = [layer.distance for layer in layers]
    last = distances[-LAST_LAYERS:]
    worst = max(layers, key=lambda layer: layer.distance).layer
    return BatchNormShift(layers, sum(distances) / len(distances), sum(last) / len(last), worst)
