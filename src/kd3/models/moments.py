"""Mean and variance of a stream of values, merged batch by batch in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
