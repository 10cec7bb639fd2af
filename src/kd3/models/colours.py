"""Networks that were trained on images in the order B, G, R, as OpenCV reads them, made to take R, G, B."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kd3.compute import full_float32
from kd3.errors import KD3Error
from kd3.models.copying import copy_of
from kd3.models.head import as_logits, evaluating, probe_images

SAME = 1e-3  # relative: sums come in another order


@full_float32()
def turned(network: nn.Module, input_size: int, *, what: str) -> nn.Module:
    """Return a copy that says of images in the order R, G, B what the network says of them in B, G, R.

    The weights of the convolutions that read three channels are turned round, and the result is compared with the
    network's own on random images.

    Raises:
        KD3Error: it cannot be done in this network, or the network does not run; told of `what`.
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
        return network  # that it does not run is told, with more words, where it is tried next
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
