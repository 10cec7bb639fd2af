"""Draw rare classes more often than their natural frequency."""

from __future__ import annotations

import torch
from torch import Tensor


def class_balance(labels: Tensor, *, strength: float) -> Tensor:
    """Return each image's relative frequency of draws: n_y^-strength for an image of class y.

    With n_k images of class k among them, a class gets a share of the draws proportional to n_k^(1 - strength): 0 keeps
    the natural frequencies, 1 makes all non-empty classes equally frequent.

    Shapes: (M,) int -> (M,) float32, positive. strength in [0, 1].
    """
    counts = torch.bincount(labels.long())
    return counts.clamp_min(1).double().pow(-strength)[labels.long()].float()


def weighted_order(weights: Tensor, need: int, *, generator: torch.Generator) -> Tensor:
    """Return `need` draws among M images in random order; an image's count follows its weight, within one.

    Systematic sampling: an image whose share of the draws is r is drawn floor(r) or ceil(r) times, r on average.

    Shapes: (M,) positive -> (need,) int64.
    """
    shuffled = torch.randperm(len(weights), generator=generator)
    ends = weights[shuffled].double().cumsum(0)
    ends = ends * (need / ends[-1])
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    upto = torch.floor(ends + offset).long()
    upto[-1] = need  # despite rounding
    counts = torch.diff(upto.clamp_max(need), prepend=torch.zeros(1, dtype=torch.int64))
    drawn = shuffled.repeat_interleave(counts)
    return drawn[torch.randperm(need, generator=generator)]
