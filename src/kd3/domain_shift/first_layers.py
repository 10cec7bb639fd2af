"""Check that weights belong to this network: another one with the same names but other layers in between also loads
them.

Every batch norm stores the statistics of its training inputs. The check shifts each batch norm's input to its stored
mean and variance. In the right network the next input then also matches its stored statistics, for any images: a shift
of the images ends at the first batch norm. An extra pooling or another activation breaks the match.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kd3.models.batch_norm_statistics import remembering_norms
from kd3.models.moments import moments_of
from kd3.models.teacher import Teacher

LAYERS = 9  # batch norms checked; the first sees the images and is no evidence
# Of the distance at the worst of them. Measured with three ResNets for 32 pixels: right networks stood at 0.02 on the
# crawl and at 0.19 and less on any images (blur, noise, edges, JPEG, white noise, flat colours), those with a max
# pooling of 3 x 3 in their stem at 0.51 and more (docs/models.md).
FAR = 0.3


class _Enough(Exception):
    """All checked layers have run."""


@dataclass(frozen=True)
class FirstLayers:
    """Distance of the inputs of a network's first batch norms from their running statistics."""

    distances: dict[str, float]  # by module path, in the order of execution; 0 is the same; see `batch_norms`

    @property
    def warning(self) -> str | None:
        """Warning if the weights were probably trained in another network."""
        later = list(self.distances.items())[1:]
        if not later:
            return None
        layer, distance = max(later, key=lambda pair: pair[1])
        if distance <= FAR:
            return None
        return (
            f"the teacher's batch norms remember other inputs than this network gives them, from the first layers on "
            f"({distance:.2f} at {layer}; up to {FAR} on any images in the network that was trained): its weights fit "
            f"by name and shape, but were probably trained in another one (a pooling or a stride in its stem, another "
            f"activation)"
        )


def first_layers(teacher: Teacher, images: Tensor) -> FirstLayers:
    """Measure the match of a network's first layers.

    Batch norms that have seen no image (mean 0, variance 1) are skipped.

    Shapes: normalised images (B, C, S, S), on the teacher's device; a hundred or so are enough.
    """
    norms = {name: norm for name, norm in remembering_norms(teacher.module).items() if _has_learnt(norm)}
    found: dict[str, float] = {}
    handles = [norm.register_forward_pre_hook(_fitted(name, found)) for name, norm in norms.items()]
    try:
        teacher(images)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return FirstLayers(found)


def _has_learnt(norm: nn.Module) -> bool:
    return bool((norm.running_mean != 0).any() or (norm.running_var != 1).any())  # type: ignore[union-attr]


def _fitted(name: str, found: dict[str, float]) -> Any:
    """Return a hook that records an input's distance from a batch norm's running statistics, and shifts it there."""

    def hook(norm: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if len(found) == LAYERS:
            raise _Enough
        seen = moments_of(arguments[0])
        mean, variance = norm.running_mean.double(), norm.running_var.double()
        gap = (seen.mean - mean).square() + (seen.variance.sqrt() - variance.sqrt()).square()
        found.setdefault(name, float((gap / (variance + norm.eps)).mean()))
        scale = ((variance + norm.eps) / (seen.variance + norm.eps)).sqrt()
        shift = mean - seen.mean * scale
        shape = (1, -1, *[1] * (arguments[0].ndim - 2))
        return (torch.addcmul(shift.float().view(shape), arguments[0], scale.float().view(shape)), *arguments[1:])

    return hook
