"""Copies of arbitrary networks: computed weights, and any floating-point type."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

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
