"""ResNet-8x4, ResNet-32x4, ResNet-110x2, ...: the CIFAR ResNets with wider stages, as distillation papers have them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kd3.models.zoo.blocks import convolution, initialise, projection


class DownsampleBlock(nn.Module):
    """The basic residual block with its shortcut under the name `downsample`, as public checkpoints have it.

    Shapes: (B, in_channels, H, W) -> (B, channels, H / stride, W / stride).

    Source: He et al. (arXiv 1512.03385), figure 5, left.
    """

    def __init__(self, in_channels: int, channels: int, *, stride: int) -> None:
        super().__init__()
        changes = stride != 1 or in_channels != channels
        self.conv1 = convolution(in_channels, channels, 3, stride=stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = convolution(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = projection(in_channels, channels, stride=stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map, after its ReLU."""
        inner = torch.relu_(self.bn1(self.conv1(x)))
        return torch.relu_(self.bn2(self.conv2(inner)) + self.downsample(x))


class ResNetX4(nn.Module):
    """A stem of 16 or 32 channels and three stages of 16, 32 and 64 channels times the width at 1, 1/2 and 1/4 size.

    Shapes: (B, 3, H, W) -> (B, num_classes). Feature map: the output of `layer3`. The depth is
    6n + 2, n blocks a stage. Only a width of 4 widens the stem, too.

    Source: the architecture of He et al. (arXiv 1512.03385), section 4.2, widened as in Tian et al.,
    Contrastive Representation Distillation (arXiv 1910.10699) and Chen et al., SimKD (arXiv 2203.14001);
    parameters are named as in their repositories.
    """

    def __init__(self, *, num_classes: int, depth: int, width: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        stem = 32 if width == 4 else 16
        self.conv1 = convolution(3, stem, 3)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = _stage(stem, 16 * width, blocks, stride=1)
        self.layer2 = _stage(16 * width, 32 * width, blocks, stride=2)
        self.layer3 = _stage(32 * width, 64 * width, blocks, stride=2)
        self.fc = nn.Linear(64 * width, num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        x = torch.relu_(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(features.mean(dim=(2, 3)))
        return logits


def _stage(in_channels: int, channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = DownsampleBlock(in_channels, channels, stride=stride)
    return nn.Sequential(first, *(DownsampleBlock(channels, channels, stride=1) for _ in range(blocks - 1)))
