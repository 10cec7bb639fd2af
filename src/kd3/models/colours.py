"""Conversion of networks trained on B, G, R images (the order of OpenCV) to R, G, B."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kd3.compute import full_float32
from kd3.errors import KD3Error
from kd3.models.copying import copy_of
from kd3.models.head import as_logits, evaluating, probe_images

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
    handles = [module.register_forward_pre_hook(watch) for module in convolutions]
    try:
        network(images)
    finally:
        for handle in handles:
            handle.remove()
    return {module for module in convolutions if module in readers}


def _cannot(what: str) -> KD3Error:
    return KD3Error(
        f"{what} says colours: bgr, but no convolution in it reads the three colours; turn them in a function of your "
        f"own (path/to/net.py:build), and leave colours out"
    )
