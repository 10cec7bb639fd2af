"""From stored pixels to what a network expects."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalisation(nn.Module):
    """Turns uint8 RGB into normalised floats: (x / 255 - mean) / std, per channel.

    mean and std are for RGB in [0, 1]; std > 0.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        deviation = torch.tensor(self.std, dtype=torch.float64)
        offset = torch.tensor(self.mean, dtype=torch.float64)
        # One multiplication and one addition per pixel.
        self.register_buffer("scale", (1 / (255 * deviation)).float().view(1, -1, 1, 1), persistent=False)
        self.register_buffer("shift", (-offset / deviation).float().view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Shapes: (B, 3, H, W) uint8 -> (B, 3, H, W) float32, the memory format kept."""
        return torch.addcmul(self.shift, images.to(self.scale.dtype), self.scale)
