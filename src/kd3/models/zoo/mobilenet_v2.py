"""MobileNetV2 with fewer strides, for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kd3.models.zoo.blocks import convolution, initialise, projection

# (expansion, channels, blocks, stride of the first), the paper's table 2; stem and second row have stride 1
# instead of 2, so that 32 px end as a 4 x 4 map.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """Widen by a 1x1, filter by a depthwise 3x3, narrow by a linear 1x1 convolution; a shortcut at stride 1.

    Shapes: (B, in_channels, H, W) -> (B, channels, H / stride, W / stride).

    Source: Sandler et al. (arXiv 1801.04381), section 3.3. As in kuangliu/pytorch-cifar the shortcut is
    a 1x1 convolution where the channels change (the paper has none there), and ReLU stands for ReLU6.
    """

    def __init__(self, in_channels: int, channels: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        wide = expansion * in_channels
        self.conv1 = convolution(in_channels, wide, 1)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv2 = convolution(wide, wide, 3, stride=stride, groups=wide)
        self.bn2 = nn.BatchNorm2d(wide)
        self.conv3 = convolution(wide, channels, 1)
        self.bn3 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module | None = None
        if stride == 1:
            changes = in_channels != channels
            self.shortcut = projection(in_channels, channels, stride=1) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map; there is no ReLU after it."""
        inner = torch.relu_(self.bn1(self.conv1(x)))
        inner = torch.relu_(self.bn2(self.conv2(inner)))
        narrow: Tensor = self.bn3(self.conv3(inner))
        return narrow if self.shortcut is None else narrow + self.shortcut(x)


class MobileNetV2(nn.Module):
    """Seven rows of inverted residuals at 1, 1/2, 1/4 and 1/8 size, then 1280 channels.

    Shapes: (B, 3, H, W) -> (B, num_classes). Feature map: the output of `relu`.

    Source: Sandler et al. (arXiv 1801.04381), table 2; parameters are named as in kuangliu/pytorch-cifar.
    """

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.conv1 = convolution(3, 32, 3)
        self.bn1 = nn.BatchNorm2d(32)
        self.layers = _inverted_residuals(32)
        self.conv2 = convolution(320, 1280, 1)
        self.bn2 = nn.BatchNorm2d(1280)
        self.relu = nn.ReLU()  # a module, so that the pooled map can be seen at its output
        self.linear = nn.Linear(1280, num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        x = self.layers(torch.relu_(self.bn1(self.conv1(images))))
        features = self.relu(self.bn2(self.conv2(x)))
        logits: Tensor = self.linear(features.mean(dim=(2, 3)))
        return logits


def _inverted_residuals(in_channels: int) -> nn.Sequential:
    blocks = []
    for expansion, channels, count, first_stride in _STAGES:
        for stride in (first_stride, *[1] * (count - 1)):
            blocks.append(InvertedResidual(in_channels, channels, expansion=expansion, stride=stride))
            in_channels = channels
    return nn.Sequential(*blocks)
