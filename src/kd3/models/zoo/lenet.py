"""LeNet-5 with ReLU and max pooling, and its half: the usual pair for MNIST in data-free distillation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd3.models.zoo.blocks import initialise


class LeNet5(nn.Module):
    """Three convolutions of 5 x 5 without padding, two max poolings, two linear layers; no batch norm.

    Shapes: (B, channels, H, W) -> (B, num_classes), H and W from 32 px; a larger map is averaged. Features: the vector
    that `fc2` takes.

    Args:
        num_classes: number of logits.
        filters: of the three convolutions and of the first linear layer.
        channels: of the images: 1 (of a teacher whose description has one mean) or 3.

    Source: LeCun et al., Gradient-Based Learning Applied to Document Recognition (1998), section II.B, as Chen et al.,
    Data-Free Learning of Student Networks (arXiv 1904.01186), train it and halve it.
    """

    def __init__(self, *, num_classes: int, filters: Sequence[int], channels: int = 1) -> None:
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3; got {channels!r}")
        super().__init__()
        self.conv1 = nn.Conv2d(channels, filters[0], 5)
        self.conv2 = nn.Conv2d(filters[0], filters[1], 5)
        self.conv3 = nn.Conv2d(filters[1], filters[2], 5)
        self.fc1 = nn.Linear(filters[2], filters[3])
        self.fc2 = nn.Linear(filters[3], num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        x = functional.max_pool2d(torch.relu_(self.conv1(images)), 2)
        x = functional.max_pool2d(torch.relu_(self.conv2(x)), 2)
        x = torch.relu_(self.conv3(x)).mean(dim=(2, 3))
        logits: Tensor = self.fc2(torch.relu_(self.fc1(x)))
        return logits
