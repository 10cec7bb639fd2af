"""Wide residual networks: pre-activation blocks, three stages, width in multiples of 16."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kd3.models.zoo.blocks import convolution, initialise


class PreActivationBlock(nn.Module):
    """Batch norm and ReLU before each of two 3x3 convolutions; nothing after the sum.

    Where the channels change, the shortcut is a 1x1 convolution of the *activated* input.

    Shapes: (B, in_channels, H, W) -> (B, channels, H / stride, W / stride).

    Source: Zagoruyko and Komodakis, Wide Residual Networks (arXiv 1605.07146), figure 1(c).
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = convolution(in_channels, channels, 3, stride=stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = convolution(channels, channels, 3)
        changes = in_channels != channels
        self.convShortcut = convolution(in_channels, channels, 1, stride=stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map, before any ReLU."""
        activated = torch.relu_(self.bn1(x))
        inner = torch.relu_(self.bn2(self.conv1(activated)))
        inner = self.conv2(inner)
        shortcut = x if self.convShortcut is None else self.convShortcut(activated)
        output: Tensor = shortcut + inner
        return output


class Stage(nn.Module):
    """Blocks in a row. A module of its own because public checkpoints name it: `block1.layer.0`.

    Shapes: (B, in_channels, H, W) -> (B, channels, H / stride, W / stride).
    """

    def __init__(self, in_channels: int, channels: int, blocks: int, *, stride: int) -> None:
        super().__init__()
        first = PreActivationBlock(in_channels, channels, stride=stride)
        rest = (PreActivationBlock(channels, channels, stride=1) for _ in range(blocks - 1))
        self.layer = nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Return the last block's map."""
        output: Tensor = self.layer(x)
        return output


class WideResNet(nn.Module):
    """WRN-depth-width: stages of 16, 32 and 64 channels times the width, at 1, 1/2 and 1/4 size.

    Shapes: (B, 3, H, W) -> (B, num_classes). Feature map: the output of `relu`. The depth is 6n + 4,
    n blocks a stage.

    Source: Zagoruyko and Komodakis (arXiv 1605.07146), table 1, without dropout; parameters are named
    as in RepDistiller.
    """

    def __init__(self, *, num_classes: int, depth: int, width: int) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        self.conv1 = convolution(3, 16, 3)
        self.block1 = Stage(16, 16 * width, blocks, stride=1)
        self.block2 = Stage(16 * width, 32 * width, blocks, stride=2)
        self.block3 = Stage(32 * width, 64 * width, blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.relu = nn.ReLU()  # a module, so that the pooled map can be seen at its output
        self.fc = nn.Linear(64 * width, num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        x = self.block3(self.block2(self.block1(self.conv1(images))))
        features = self.relu(self.bn1(x))
        logits: Tensor = self.fc(features.mean(dim=(2, 3)))
        return logits
