"""ResNet-8 to ResNet-110 for CIFAR: three thin stages of 2n layers, 6n + 2 in all."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd3.models.zoo.blocks import BasicBlock, convolution, initialise, projection


class PaddedShortcut(nn.Module):
    """A shortcut without parameters: every stride-th pixel, and zeros for the new channels ("option A").

    The zeros go half before and half after the old channels, as in the public checkpoints
    (the paper does not say where).

    Shapes: (B, C, H, W) -> (B, C + new_channels, H / stride, W / stride).
    """

    def __init__(self, new_channels: int, *, stride: int) -> None:
        super().__init__()
        before = new_channels // 2
        self.padding = (0, 0, 0, 0, before, new_channels - before)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return the thinned, padded map."""
        return functional.pad(x[:, :, :: self.stride, :: self.stride], self.padding)


class ResNetCifar(nn.Module):
    """Three stages of 16, 32 and 64 channels at 1, 1/2 and 1/4 size.

    Shapes: (B, 3, H, W) -> (B, num_classes). Feature map: the output of `layer3`.

    Args:
        num_classes: number of logits.
        depth: 6n + 2; n blocks a stage.
        shortcut: where the size changes, "A" pads with zeros (the paper's choice for CIFAR, and the
            public checkpoints'), "B" has a 1x1 convolution and batch norm.

    Source: He et al. (arXiv 1512.03385), section 4.2; parameters are named as in
    akamaster/pytorch_resnet_cifar10.
    """

    def __init__(self, *, num_classes: int, depth: int, shortcut: str = "A") -> None:
        if shortcut not in ("A", "B"):
            raise ValueError(f"shortcut must be 'A' or 'B'; got {shortcut!r}")
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = convolution(3, 16, 3)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1, shortcut=nn.Identity())
        self.layer2 = _stage(16, 32, blocks, stride=2, shortcut=_shortcut(shortcut, 16, 32))
        self.layer3 = _stage(32, 64, blocks, stride=2, shortcut=_shortcut(shortcut, 32, 64))
        self.linear = nn.Linear(64, num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        x = torch.relu_(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(features.mean(dim=(2, 3)))
        return logits


def _shortcut(kind: str, in_channels: int, out_channels: int) -> nn.Module:
    if kind == "A":
        return PaddedShortcut(out_channels - in_channels, stride=2)
    return projection(in_channels, out_channels, stride=2)


def _stage(in_channels: int, channels: int, blocks: int, *, stride: int, shortcut: nn.Module) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride=stride, shortcut=shortcut)
    rest = (BasicBlock(channels, channels, stride=1, shortcut=nn.Identity()) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)
