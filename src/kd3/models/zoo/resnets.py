"""Residual networks for small images, and the blocks that all families share.

Common parts of the zoo's families: convolutions, the basic residual block, He's initialisation. Across the zoo,
`torch.relu_` works in place only on a tensor that was made within the same expression (a batch norm's output, a sum):
this saves a seventh of a step's time on a CPU and never changes a feature map that other code holds. The map that the
classifier pools is never changed in place after its module.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


def convolution(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a convolution with "same" padding and no bias, since the following batch norm has one."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)


def projection(in_channels: int, out_channels: int, *, stride: int) -> nn.Sequential:
    """Return a shortcut of a 1x1 convolution and batch norm ("option B" of He et al.)."""
    return nn.Sequential(convolution(in_channels, out_channels, 1, stride=stride), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut: relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)).

    Shapes: (B, in_channels, H, W) -> (B, channels, H / stride, W / stride).

    Source: He et al., Deep Residual Learning (arXiv 1512.03385), figure 5, left.
    """

    expansion = 1  # output channels per inner channel

    def __init__(self, in_channels: int, channels: int, *, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = convolution(in_channels, channels, 3, stride=stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = convolution(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map, after its ReLU."""
        inner = torch.relu_(self.bn1(self.conv1(x)))
        return torch.relu_(self.bn2(self.conv2(inner)) + self.shortcut(x))


def initialise(network: nn.Module) -> None:
    """Draw the convolutions of a network as He et al. do: normal, mean 0, variance 2 / fan_out.

    fan_out = kernel height * kernel width * output channels that one input channel reaches; unlike
    `nn.init.kaiming_normal_` this counts the groups of depthwise convolutions. Batch norms (1, 0)
    and linear layers keep torch's initialisation.

    Source: He et al., Delving Deep into Rectifiers (arXiv 1502.01852), section 2.2, equation 14.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            fan_out = height * width * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


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
        self.layer1 = _cifar_stage(16, 16, blocks, stride=1, shortcut=nn.Identity())
        self.layer2 = _cifar_stage(16, 32, blocks, stride=2, shortcut=_shortcut(shortcut, 16, 32))
        self.layer3 = _cifar_stage(32, 64, blocks, stride=2, shortcut=_shortcut(shortcut, 32, 64))
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


def _cifar_stage(in_channels: int, channels: int, blocks: int, *, stride: int, shortcut: nn.Module) -> nn.Sequential:
    first = BasicBlock(in_channels, channels, stride=stride, shortcut=shortcut)
    rest = (BasicBlock(channels, channels, stride=1, shortcut=nn.Identity()) for _ in range(blocks - 1))
    return nn.Sequential(first, *rest)


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
        self.layer1 = _x4_stage(stem, 16 * width, blocks, stride=1)
        self.layer2 = _x4_stage(16 * width, 32 * width, blocks, stride=2)
        self.layer3 = _x4_stage(32 * width, 64 * width, blocks, stride=2)
        self.fc = nn.Linear(64 * width, num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        x = torch.relu_(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(features.mean(dim=(2, 3)))
        return logits


def _x4_stage(in_channels: int, channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = DownsampleBlock(in_channels, channels, stride=stride)
    return nn.Sequential(first, *(DownsampleBlock(channels, channels, stride=1) for _ in range(blocks - 1)))


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
