"""From stored pixels to what a network expects."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

GREY = (0.299, 0.587, 0.114)  # of R, G, B: the luma of ITU-R BT.601, as Pillow's "L" and OpenCV have it


class Normalisation(nn.Module):
    """Turns uint8 RGB into normalised floats: (x / 255 - mean) / std, per channel.

    mean and std are for RGB in [0, 1]; std > 0. One value of each is for grey images: of RGB their luma is taken first.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.channels = len(self.mean)  # of what it puts out: 3, or 1
        deviation = torch.tensor(self.std, dtype=torch.float64)
        offset = torch.tensor(self.mean, dtype=torch.float64)
        of_each = torch.tensor(GREY if self.channels == 1 else (1.0,), dtype=torch.float64)
        # One multiplication and one addition per pixel.
        self.register_buffer("scale", (of_each / (255 * deviation)).float().view(1, -1, 1, 1), persistent=False)
        self.register_buffer("shift", (-offset / deviation).float().view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Shapes: (B, 3, H, W) uint8 -> (B, C, H, W) float32, C = 3 or 1, the memory format kept."""
        if self.channels == 1:
            return (images.to(self.scale.dtype) * self.scale).sum(1, keepdim=True) + self.shift
        return torch.addcmul(self.shift, images.to(self.scale.dtype), self.scale)
