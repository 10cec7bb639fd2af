"""Copies of networks as people have them: computed weights, and any floating-point type."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import Tensor, nn


def copy_of(network: nn.Module) -> nn.Module:
    """Return a deep copy, also of a network whose modules hold computed tensors.

    `torch.nn.utils.weight_norm`, `spectral_norm` and pruning leave the weight that they computed last as an
    attribute, with the graph that made it, which PyTorch refuses to copy. The next run computes it anew.
    """
    computed: dict[int, Tensor] = {}
    for part in network.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and value.grad_fn is not None:
                computed[id(value)] = value.detach().clone()
    return copy.deepcopy(network, dict(computed))


def in_float32(network: nn.Module) -> nn.Module:
    """Return it in float32, whatever it was saved in: images come in that, and kd3 sets the precision."""
    kinds = {tensor.dtype for tensor in chain(network.parameters(), network.buffers()) if tensor.is_floating_point()}
    return network if kinds <= {torch.float32} else network.float()
