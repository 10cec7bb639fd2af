"""Projectors of the student's feature map into the teacher's feature space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Projector(nn.Sequential):
    """1x1 conv, 3x3 conv, 1x1 conv, each with batch norm and ReLU, no bias.

    C_s -> width -> width -> C_t channels. The last ReLU is right for teachers whose feature map
    is itself after a ReLU; for maps with negative values leave it out (`final_relu=False`).

    A map larger than `size` (height and width of the teacher's) is average-pooled to it first.

    Shapes: (B, in_channels, h, w) -> (B, out_channels, h, w), with `size` (B, out_channels, min(h, size[0]), ...).

    Source: SimKD (arXiv 2203.14001), which pools the larger map first, too; KD3 (arXiv 2307.11469) uses the same with a
    width of half of the teacher's channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int | None = None,
        final_relu: bool,
        size: Sequence[int] | None = None,
    ) -> None:
        width = width or max(1, out_channels // 2)
        layers: list[nn.Module] = [
            *_block(in_channels, width, kernel=1),
            *_block(width, width, kernel=3),
            *_block(width, out_channels, kernel=1),
        ]
        super().__init__(*(layers if final_relu else layers[:-1]))
        self.in_channels, self.out_channels = in_channels, out_channels
        self.width, self.final_relu = width, final_relu
        self.size = None if size is None else (size[0], size[1])

    def forward(self, features: Tensor) -> Tensor:
        """Return the projected map."""
        features = _pooled(features, self.size)
        for layer in self:
            features = layer(features)
        return features

    def description(self) -> dict[str, Any]:
        """Return the arguments of `build_projector` for an equal projector."""
        return {
            "kind": "simkd",
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "width": self.width,
            "final_relu": self.final_relu,
            **({} if self.size is None else {"size": list(self.size)}),
        }


class Correction(nn.Module):
    """The features themselves plus a projector that starts at zero: r(F) = relu(lift(F) + P(F)).

    This preserves inherited features, which a randomly initialised projector before the teacher's classifier would
    destroy. `lift` is the identity where the channels agree, else a linear map (1x1 convolution) of them. A map larger
    than `size` is average-pooled to it first.

    Shapes: (B, in_channels, h, w) -> (B, out_channels, h, w).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int | None = None,
        final_relu: bool,
        size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        same = in_channels == out_channels
        self.lift = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.projector = Projector(in_channels, out_channels, width=width, final_relu=False, size=size)
        last = self.projector[-1]
        assert isinstance(last, nn.BatchNorm2d)
        nn.init.zeros_(last.weight)
        self.final_relu = final_relu

    def forward(self, features: Tensor) -> Tensor:
        """Return the map in the teacher's feature space."""
        lifted: Tensor = self.lift(_pooled(features, self.projector.size)) + self.projector(features)
        return torch.relu(lifted) if self.final_relu else lifted

    @torch.no_grad()
    def fit_lift(self, features: Tensor, wanted: Tensor) -> None:
        """Fit the linear map to the wanted features by least squares.

        Shapes: (B, in_channels, h, w), (B, out_channels, h, w). Nothing is fitted if the channels agree.
        """
        if isinstance(self.lift, nn.Identity):
            return
        x = features.double().movedim(1, -1).flatten(0, -2)
        y = wanted.double().movedim(1, -1).flatten(0, -2)
        gram = x.T @ x
        gram.diagonal().add_(1e-4 * gram.diagonal().mean().clamp_min(1e-12))
        weight = torch.linalg.solve(gram, x.T @ y).T
        self.lift.weight.copy_(weight[:, :, None, None])

    def description(self) -> dict[str, Any]:
        """Return the arguments of `build_projector` for an equal projector."""
        return {**self.projector.description(), "kind": "correction", "final_relu": self.final_relu}


def build_projector(*, kind: str = "simkd", **sizes: Any) -> Projector | Correction:
    """Return a projector by its kind: `simkd` or `correction`.

    Raises:
        ValueError: there is no such kind.
    """
    kinds: dict[str, type[Projector | Correction]] = {"simkd": Projector, "correction": Correction}
    if kind not in kinds:
        raise ValueError(f"no projector {kind!r}")
    return kinds[kind](**sizes)


def draw_as_torch(network: nn.Module) -> None:
    """Initialise a network's convolutions again as PyTorch does: uniform, within 1 / sqrt(fan_in)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()


def _pooled(features: Tensor, size: tuple[int, int] | None) -> Tensor:
    height, width = features.shape[2:]
    if size is None or (height <= size[0] and width <= size[1]):
        return features
    return F.adaptive_avg_pool2d(features, (min(height, size[0]), min(width, size[1])))


def _block(in_channels: int, out_channels: int, *, kernel: int) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
