"""Calls of networks that need more than `network(images)`, and copies of arbitrary networks.

Calls of networks that need more than `network(images)`, kept on them as hooks: they are never wrapped. `soundness`
finds the calling convention by trial. Copies of the network and student folders keep it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kd3.runtime.compute import CONTIGUOUS

PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def copy_of(network: nn.Module) -> nn.Module:
    """Return a deep copy, also of a network whose modules hold computed tensors.

    `torch.nn.utils.weight_norm`, `spectral_norm` and pruning keep the last computed weight as an attribute with its
    autograd graph, which PyTorch refuses to copy. The next forward pass computes it again.
    """
    computed: dict[int, Tensor] = {}
    for part in network.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                computed[id(value)] = value.detach().clone()
    return copy.deepcopy(network, dict(computed))


def cast_layers(network: nn.Module, kind: torch.dtype) -> None:
    """Cast in place the weights and biases that autocast casts at every pass: plain linear layers and convolutions.

    Tensors shared with other kinds of modules, and those computed or altered by hooks, are unchanged.
    """
    plain = [part for part in network.modules() if type(part) in PLAIN and not parametrize.is_parametrized(part)]
    plain = [part for part in plain if not part._forward_pre_hooks and not part._forward_hooks]
    chosen = {id(part) for part in plain}
    others = [part for part in network.modules() if id(part) not in chosen]
    elsewhere = {id(value) for part in others for value in part._parameters.values()}
    for part in plain:
        for name, value in part._parameters.items():
            if value is not None and id(value) not in elsewhere and value.dtype == torch.float32:
                part._parameters[name] = nn.Parameter(value.detach().to(kind), requires_grad=False)


def in_float32(network: nn.Module) -> nn.Module:
    """Return the network in float32, the type of the images; kd3 sets the precision later."""
    kinds = {tensor.dtype for tensor in chain(network.parameters(), network.buffers()) if tensor.is_floating_point()}
    return network if kinds <= {torch.float32} else network.float()


@dataclass(frozen=True)
class Calling:
    """Changes to a network's images and outputs. The defaults change nothing."""

    channels: int = 3  # of the normalised images: 3 for R, G, B; 1 for grey
    grey_thrice: bool = False  # the grey channel is repeated for a network that reads three
    contiguous: bool = False  # it applies .view to its maps and cannot run in channels_last
    output: int | str | None = None  # which of several outputs holds the logits; None: as `as_logits` takes them
    one_logit: bool = False  # its one value z for an image stands for the logits (0, z)


def call_as(network: nn.Module, calling: Calling) -> None:
    """Set the calling convention of a network, replacing any earlier one."""
    for hooks in (network._forward_pre_hooks, network._forward_hooks):
        for key in [key for key, hook in hooks.items() if isinstance(hook, _Before | _After)]:
            del hooks[key]
    setattr(network, CONTIGUOUS, calling.contiguous)
    # The bound methods of a TorchScript module refuse hooks; these run all the same.
    if calling != Calling():
        nn.Module.register_forward_pre_hook(network, _Before(calling))
    if calling.output is not None or calling.one_logit:
        nn.Module.register_forward_hook(network, _After(calling))


def calling_of(network: nn.Module) -> Calling:
    """Return the calling convention of a network, or of the one inside it."""
    for part in network.modules():
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, _Before):
                return hook.calling
    return Calling()


def picked(returned: Any, output: int | str) -> Any:
    """Return one of a network's outputs, by its place or its name.

    Raises:
        LookupError: there is no such output.
    """
    if isinstance(output, str) and not isinstance(returned, Mapping):
        if not hasattr(returned, output):
            raise LookupError(output)
        return getattr(returned, output)
    if isinstance(returned, Tensor):
        raise LookupError(output)
    return returned[output]


def both_logits(one: Tensor) -> Tensor:
    """Return (0, z) for each image. Shapes: (B, 1), (B,) or, of one image, () -> (B, 2)."""
    z = one.reshape(-1, 1)
    return torch.cat([torch.zeros_like(z), z], dim=1)


class _Before:
    """Hook as an object, so that copies and pickles of the network keep it."""

    def __init__(self, calling: Calling) -> None:
        self.calling = calling

    def __call__(self, network: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        images, *more = arguments
        if self.calling.grey_thrice:
            images = images.expand(-1, 3, -1, -1)
        if self.calling.contiguous:
            images = images.contiguous()
        return (images, *more)


class _After:
    def __init__(self, calling: Calling) -> None:
        self.calling = calling

    def __call__(self, network: nn.Module, arguments: tuple[Any, ...], returned: Any) -> Any:
        if self.calling.output is not None:
            returned = picked(returned, self.calling.output)
        return both_logits(returned) if self.calling.one_logit else returned
