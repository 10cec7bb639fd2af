"""ResNet-18/34/50 for small images: a 3x3 stem without stride or max pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kd3.models.zoo.blocks import BasicBlock, convolution, initialise, projection


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut; the last one widens fourfold.

    Shapes: (B, in_channels, H, W) -> (B, 4 * channels, H / stride, W / stride).

    Source: He et al. (arXiv 1512.03385), figure 5, right; the stride is in the 3x3 convolution.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, *, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = convolution(channels, channels, 3, stride=stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = convolution(channels, self.expansion * channels, 1)
        self.bn3 = nn.BatchNorm2d(self.expansion * channels)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map, after its ReLU."""
        inner = torch.relu_(self.bn1(self.conv1(x)))
        inner = torch.relu_(self.bn2(self.conv2(inner)))
        return torch.relu_(self.bn3(self.conv3(inner)) + self.shortcut(x))


Block = type[BasicBlock] | type[Bottleneck]
_BLOCKS: dict[int, tuple[Block, tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
}


class ResNet(nn.Module):
    """Four stages of 64, 128, 256 and 512 channels (times 4 with bottlenecks), at 1, 1/2, 1/4, 1/8 size.

    Shapes: (B, 3, H, W) -> (B, num_classes). Feature map: the output of `layer4`.

    Source: He et al. (arXiv 1512.03385), table 1, with a stem for small images; parameters
    are named as in kuangliu/pytorch-cifar.
    """

    def __init__(self, *, num_classes: int, depth: int) -> None:
        super().__init__()
        block, blocks = _BLOCKS[depth]
        self.conv1 = convolution(3, 64, 3)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = _stage(block, 64, 64, blocks[0], stride=1)
        self.layer2 = _stage(block, 64 * block.expansion, 128, blocks[1], stride=2)
        self.layer3 = _stage(block, 128 * block.expansion, 256, blocks[2], stride=2)
        self.layer4 = _stage(block, 256 * block.expansion, 512, blocks[3], stride=2)
        self.linear = nn.Linear(512 * block.expansion, num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        x = torch.relu_(self.bn1(self.conv1(images)))
        features = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.linear(features.mean(dim=(2, 3)))
        return logits


def _stage(block: Block, in_channels: int, channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    out_channels = channels * block.expansion
    changes = stride != 1 or in_channels != out_channels
    shortcut = projection(in_channels, out_channels, stride=stride) if changes else nn.Identity()
    first = block(in_channels, channels, stride=stride, shortcut=shortcut)
    rest = (block(out_channels, channels, stride=1, shortcut=nn.Identity()) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)
