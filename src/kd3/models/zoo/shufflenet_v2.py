"""ShuffleNetV2 with fewer strides, for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd3.models.zoo.blocks import convolution, initialise

# width: channels of the three stages and of the last convolution, the paper's table 5. Width 2 starts with
# 224 as in kuangliu/pytorch-cifar, where the paper has 244.
_CHANNELS = {
    0.5: (48, 96, 192, 1024),
    1: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2: (224, 488, 976, 2048),
}
_BLOCKS = (3, 7, 3)  # after the first block of each stage, which halves the size


class ShuffleBlock(nn.Module):
    """Half of the channels pass by, half go through 1x1, depthwise 3x3, 1x1; then both are interleaved.

    Shapes: (B, channels, H, W) -> (B, channels, H, W).

    Source: Ma et al., ShuffleNet V2 (arXiv 1807.11164), figure 3(c).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = convolution(half, half, 1)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = convolution(half, half, 3, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = convolution(half, half, 1)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """Return the interleaved map."""
        passed, inner = x.chunk(2, dim=1)
        inner = torch.relu_(self.bn1(self.conv1(inner)))
        inner = self.bn2(self.conv2(inner))
        inner = torch.relu_(self.bn3(self.conv3(inner)))
        return _interleave(passed, inner)


class ShuffleDownBlock(nn.Module):
    """Two branches over all channels, each halving the size; then both are interleaved.

    Shapes: (B, in_channels, H, W) -> (B, channels, H / 2, W / 2).

    Source: Ma et al. (arXiv 1807.11164), figure 3(d).
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        # Left: depthwise 3x3, 1x1.
        self.conv1 = convolution(in_channels, in_channels, 3, stride=2, groups=in_channels)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = convolution(in_channels, half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        # Right: 1x1, depthwise 3x3, 1x1.
        self.conv3 = convolution(in_channels, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = convolution(half, half, 3, stride=2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = convolution(half, half, 1)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """Return the interleaved map."""
        left = self.bn1(self.conv1(x))
        left = torch.relu_(self.bn2(self.conv2(left)))
        right = torch.relu_(self.bn3(self.conv3(x)))
        right = self.bn4(self.conv4(right))
        right = torch.relu_(self.bn5(self.conv5(right)))
        return _interleave(left, right)


class ShuffleNetV2(nn.Module):
    """Three stages of shuffle blocks at 1/2, 1/4 and 1/8 size, then 1024 or 2048 channels.

    Shapes: (B, 3, H, W) -> (B, num_classes). Feature map: the output of `relu`.

    Args:
        num_classes: number of logits.
        width: 0.5, 1, 1.5 or 2: width of the stages.

    Source: Ma et al. (arXiv 1807.11164), table 5, with a stem of stride 1 and no max pooling;
    parameters are named as in kuangliu/pytorch-cifar.
    """

    def __init__(self, *, num_classes: int, width: float = 1) -> None:
        if width not in tuple(_CHANNELS):  # a tuple: an unhashable value is refused as well
            raise ValueError(f"width must be one of {', '.join(map(str, _CHANNELS))}; got {width!r}")
        super().__init__()
        first, second, third, last = _CHANNELS[width]
        self.conv1 = convolution(3, 24, 3)
        self.bn1 = nn.BatchNorm2d(24)
        self.layer1 = _stage(24, first, _BLOCKS[0])
        self.layer2 = _stage(first, second, _BLOCKS[1])
        self.layer3 = _stage(second, third, _BLOCKS[2])
        self.conv2 = convolution(third, last, 1)
        self.bn2 = nn.BatchNorm2d(last)
        self.relu = nn.ReLU()  # a module, so that the pooled map can be seen at its output
        self.linear = nn.Linear(last, num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        x = torch.relu_(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        features = self.relu(self.bn2(self.conv2(x)))
        logits: Tensor = self.linear(features.mean(dim=(2, 3)))
        return logits


def _stage(in_channels: int, channels: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(ShuffleDownBlock(in_channels, channels), *(ShuffleBlock(channels) for _ in range(blocks)))


def _interleave(left: Tensor, right: Tensor) -> Tensor:
    # The paper's channel shuffle of two groups: l0, r0, l1, r1, ...
    return functional.channel_shuffle(torch.cat((left, right), dim=1), 2)
