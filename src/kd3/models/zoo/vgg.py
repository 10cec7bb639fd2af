"""VGG-8/11/13/16/19 with batch norm and global average pooling in place of the two hidden linear layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from kd3.models.zoo.blocks import initialise

_CHANNELS = (64, 128, 256, 512, 512)
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
        self.block0 = _block(3, _CHANNELS[0], counts[0])
        self.block1 = _block(_CHANNELS[0], _CHANNELS[1], counts[1])
        self.block2 = _block(_CHANNELS[1], _CHANNELS[2], counts[2])
        self.block3 = _block(_CHANNELS[2], _CHANNELS[3], counts[3])
        self.block4 = _block(_CHANNELS[3], _CHANNELS[4], counts[4])
        self.relu = nn.ReLU()  # a module, so that the pooled map can be seen at its output
        self.classifier = nn.Linear(_CHANNELS[4], num_classes)
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
