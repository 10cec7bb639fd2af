"""Lift the student's feature map into the teacher's feature space."""

from __future__ import annotations

from torch import nn


class Projector(nn.Sequential):
    """1x1 conv, 3x3 conv, 1x1 conv, each with batch norm and ReLU, no bias.

    C_s -> width -> width -> C_t channels. The last ReLU is right for teachers whose feature map
    is itself after a ReLU; for maps that go negative leave it out (`final_relu=False`).

    Shapes: (B, in_channels, h, w) -> (B, out_channels, h, w).

    Source: SimKD (arXiv 2203.14001); KD3 (arXiv 2307.11469) uses the same with a
    width of half of the teacher's channels.
    """

    def __init__(self, in_channels: int, out_channels: int, *, width: int | None = None, final_relu: bool) -> None:
        width = width or max(1, out_channels // 2)
        layers: list[nn.Module] = [
            *_block(in_channels, width, kernel=1),
            *_block(width, width, kernel=3),
            *_block(width, out_channels, kernel=1),
        ]
        super().__init__(*(layers if final_relu else layers[:-1]))
        self.in_channels, self.out_channels = in_channels, out_channels
        self.width, self.final_relu = width, final_relu


def _block(in_channels: int, out_channels: int, *, kernel: int) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
