"""Multiply-adds per image, for a whole network and its parts."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from kd3.models.head import evaluating


def multiply_adds(network: nn.Module, images: Tensor) -> int:
    """Return the multiply-adds of an image in convolutions, matrix products and attention.

    Shapes: images (B, C, H, W), the network's input.
    """
    return _counted(network, images, {})


def multiply_adds_of(network: nn.Module, images: Tensor, modules: Iterable[nn.Module]) -> list[int]:
    """Return the multiply-adds per image within each of the given modules; 0 for an uncalled one."""
    found = dict.fromkeys(modules, 0)
    _counted(network, images, found)
    return list(found.values())


def _counted(network: nn.Module, images: Tensor, within: dict[nn.Module, int]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    handles = []
    with FlopCounterMode(display=False) as counter, torch.no_grad(), evaluating(network):
        for module in within:

            def start(module: nn.Module, _: object) -> None:
                within[module] -= counter.get_total_flops()

            def end(module: nn.Module, _: object, __: object) -> None:
                within[module] += counter.get_total_flops()

            handles += [module.register_forward_pre_hook(start), module.register_forward_hook(end)]
        try:
            network(images)
        finally:
            for handle in handles:
                handle.remove()
    # A multiply-add is two operations.
    for module in within:
        within[module] //= 2 * len(images)
    return int(counter.get_total_flops()) // (2 * len(images))
