"""From stored pixels to what a network expects: normalised floats, luma, and the colour order of its training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kd3.models.calling import copy_of
from kd3.models.head import as_logits, evaluating, hooked, probe_images
from kd3.runtime.compute import full_float32
from kd3.runtime.errors import KD3Error

TOLERANCE = 0.01  # overshoot of resampled images
GREY = (0.299, 0.587, 0.114)  # of R, G, B: the luma of ITU-R BT.601, as Pillow's "L" and OpenCV have it


class Normalisation(nn.Module):
    """Turns uint8 RGB, or floats of a stated range, into normalised floats: (x / 255 - mean) / std, per channel.

    mean and std are for RGB in [0, 1]; std > 0. One value of each is for grey images: of RGB their luma is taken first.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.channels = len(self.mean)  # of the output: 3 or 1
        deviation = torch.tensor(self.std, dtype=torch.float64)
        offset = torch.tensor(self.mean, dtype=torch.float64)
        of_each = torch.tensor(GREY if self.channels == 1 else (1.0,), dtype=torch.float64)
        # One multiplication and one addition per pixel.
        self.register_buffer("scale", (of_each / (255 * deviation)).float().view(1, -1, 1, 1), persistent=False)
        self.register_buffer("shift", (-offset / deviation).float().view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor, *, white: float | None = None) -> Tensor:
        """Return normalised images: (B, 3, H, W) -> (B, C, H, W) float32, C = 3 or 1, the memory format kept.

        Args:
            images: uint8, or floats.
            white: of floats, the value that stands for white: 1.0 of images in [0, 1], 255.0 of those in [0, 255].

        Raises:
            KD3Error: another type, floats without a stated range, or values outside it.
        """
        if images.dtype == torch.uint8:
            if white not in (None, 255):
                raise KD3Error(f"uint8 images have 255 for white, not {white:g}; leave white out")
            return self._normalised(images.to(self.scale.dtype))
        if not images.is_floating_point():
            raise KD3Error(f"normalise takes uint8 images, or floats with their range; these are {images.dtype}")
        if white is None or white <= 0:
            raise KD3Error(
                "normalise takes uint8 images; of floats it must know the range: normalise(images, white=1.0) for "
                "values in [0, 1], white=255.0 for [0, 255]"
            )
        lowest, highest = (float(value) for value in images.aminmax()) if images.numel() else (0.0, 0.0)
        if not (-TOLERANCE * white <= lowest and highest <= (1 + TOLERANCE) * white):
            raise KD3Error(
                f"the images have values from {lowest:.3g} to {highest:.3g}, where white={white:g} says 0 to {white:g}"
            )
        return self._normalised(images.to(self.scale.dtype) * (255 / white))

    def _normalised(self, images: Tensor) -> Tensor:
        if self.channels == 1:
            return (images * self.scale).sum(1, keepdim=True) + self.shift
        return torch.addcmul(self.shift, images, self.scale)


SAME = 1e-3  # relative: the order of summation differs


@full_float32()
def turned(network: nn.Module, input_size: int, *, what: str) -> nn.Module:
    """Return a copy whose output for R, G, B images equals the network's for B, G, R.

    The input channels of the first convolutions are reversed, and the outputs are compared on random images.

    Raises:
        KD3Error: the network cannot be converted, or does not run; the message begins with `what`.
    """
    if isinstance(network, torch.jit.ScriptModule):
        raise _cannot(what)
    other = copy_of(network)
    images = probe_images(network, input_size, images=2, seed=3)
    try:
        with evaluating(network), evaluating(other), torch.no_grad():
            expected = as_logits(network(images.flip(1)))
            readers = _readers(other, images)
            for module in readers:
                module.weight.copy_(module.weight.flip(1))
            found = as_logits(other(images))
    except Exception:
        return network  # a later check reports in more detail that it does not run
    if not readers or bool((found - expected).abs().max() > SAME * expected.abs().max()):
        raise _cannot(what)
    return other


def _readers(network: nn.Module, images: Tensor) -> set[nn.Conv2d]:
    """Return the convolutions that read images, or pointwise functions of images."""
    readers = set()

    def watch(module: nn.Module, inputs: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].shape == images.shape:
            readers.add(module)

    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d) and module.groups == 1]
    with hooked(module.register_forward_pre_hook(watch) for module in convolutions):
        network(images)
    return {module for module in convolutions if module in readers}


def _cannot(what: str) -> KD3Error:
    return KD3Error(
        f"{what} says colours: bgr, but no convolution in it reads the three colours; turn them in a function of your "
        f"own (path/to/net.py:build), and leave colours out"
    )
