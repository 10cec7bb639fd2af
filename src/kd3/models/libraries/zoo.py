"""`kd3:NAME`: the networks that come with kd3, untrained."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from kd3.models.libraries.common import Facts
from kd3.models.zoo import ZOO
from kd3.runtime.errors import KD3Error, unknown_name


def build_by_name(name: str, *, num_classes: int, **arch_args: Any) -> nn.Module:
    """Return a freshly initialised classifier of the zoo.

    It takes normalised floats (B, 3, H, W), H and W from 16 px, and gives logits (B, num_classes); LeNet-5 takes
    (B, 1, H, W) unless `channels` says 3, from 32 px.

    Raises:
        KD3Error: there is no such name, or the network takes no such argument or value.
    """
    if name not in ZOO:
        raise unknown_name("network of the zoo", name, ZOO)
    entry = ZOO[name]
    module, _, attribute = entry.builder.partition(":")
    network_class = getattr(import_module(module), attribute)
    allowed = set(inspect.signature(network_class).parameters) - {"num_classes", *entry.fixed}
    for argument in arch_args:
        if not allowed:
            raise KD3Error(f"kd3:{name} takes no arguments; got {argument!r}")
        if argument not in allowed:
            raise unknown_name(f"argument of kd3:{name}", argument, allowed)
    try:
        network: nn.Module = network_class(num_classes=num_classes, **entry.fixed, **arch_args)
    except ValueError as error:  # the classes name the argument and its allowed values
        raise KD3Error(f"kd3:{name}: {error}") from error
    return network


def build(
    name: str, num_classes: int, arch_args: Mapping[str, Any], *, input_size: int | None, folder: Path
) -> nn.Module:
    """Return a new network of the zoo; all take images of any size."""
    return build_by_name(name, num_classes=num_classes, **arch_args)


def trained(name: str, arch_args: Mapping[str, Any], *, folder: Path) -> nn.Module:
    """Refuse: there are no weights for it."""
    raise KD3Error(f"kd3:{name} comes without weights; name a file of them under weights")


def facts(name: str, arch_args: Mapping[str, Any], *, folder: Path) -> Facts:
    """Return nothing: only the user knows the training data of a zoo network."""
    return Facts()
