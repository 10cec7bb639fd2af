"""Plain and mobile networks for small images: LeNet, VGG, MobileNetV2, ShuffleNetV2."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd3.models.zoo.resnets import convolution, initialise, projection


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


_VGG_CHANNELS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
# From this side on the fourth max pooling is used: the last map is 4 x 4 at 32 px and at 64 px.
_FOURTH_POOLING_FROM = 64


class VGG(nn.Module):
    """Five blocks of 3x3 convolutions, max pooling in between.

    Shapes: (B, 3, H, W) -> (B, num_classes). Feature map: the output of `relu`.

    Source: Simonyan and Zisserman (arXiv 1409.1556), table 1, columns A (11), B (13), D (16) and E (19),
    with batch norm; VGG-8 and the head are from RepDistiller (Tian et al., arXiv 1910.10699), whose names
    the parameters have. Differs from the released code: its fourth pooling is for 64 px only, here for 64 px and more.
    """

    def __init__(self, *, num_classes: int, depth: int) -> None:
        super().__init__()
        counts = _CONVOLUTIONS[depth]
        self.block0 = _block(3, _VGG_CHANNELS[0], counts[0])
        self.block1 = _block(_VGG_CHANNELS[0], _VGG_CHANNELS[1], counts[1])
        self.block2 = _block(_VGG_CHANNELS[1], _VGG_CHANNELS[2], counts[2])
        self.block3 = _block(_VGG_CHANNELS[2], _VGG_CHANNELS[3], counts[3])
        self.block4 = _block(_VGG_CHANNELS[3], _VGG_CHANNELS[4], counts[4])
        self.relu = nn.ReLU()  # a module, so that the pooled map can be seen at its output
        self.classifier = nn.Linear(_VGG_CHANNELS[4], num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        x = images
        for block in (self.block0, self.block1, self.block2):
            # ReLU and maximum commute: pooling first saves three quarters of the ReLU's work.
            x = torch.relu_(functional.max_pool2d(block(x), 2))
        x = torch.relu(self.block3(x))
        if min(images.shape[2:]) >= _FOURTH_POOLING_FROM:
            x = functional.max_pool2d(x, 2)
        features = self.relu(self.block4(x))
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits


def _block(in_channels: int, channels: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(convolutions):
        # The bias has no effect before a batch norm, but public checkpoints have one.
        layers.append(nn.Conv2d(in_channels if index == 0 else channels, channels, 3, padding=1))
        layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    # The last ReLU is outside, as in the public code.
    return nn.Sequential(*layers[:-1])


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


# width: channels of the three stages and of the last convolution, the paper's table 5. Width 2 starts with
# 224 as in kuangliu/pytorch-cifar, where the paper has 244.
_SHUFFLENET_CHANNELS = {
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
        if width not in tuple(_SHUFFLENET_CHANNELS):  # a tuple: an unhashable value is refused as well
            raise ValueError(f"width must be one of {', '.join(map(str, _SHUFFLENET_CHANNELS))}; got {width!r}")
        super().__init__()
        first, second, third, last = _SHUFFLENET_CHANNELS[width]
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
