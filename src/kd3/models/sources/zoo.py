"""`kd3:NAME`: the networks that come with kd3, untrained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from kd3.errors import KD3Error
from kd3.models.sources.facts import Facts
from kd3.models.zoo.build import build as build_from_zoo


def build(
    name: str, num_classes: int, arch_args: Mapping[str, Any], *, input_size: int | None, folder: Path
) -> nn.Module:
    """Return a new network of the zoo; all take images of any size."""
    return build_from_zoo(name, num_classes=num_classes, **arch_args)


def trained(name: str, arch_args: Mapping[str, Any], *, folder: Path) -> nn.Module:
    """Refuse: there are no weights for it."""
    raise KD3Error(f"kd3:{name} comes without weights; name a file of them under weights")


def facts(name: str, arch_args: Mapping[str, Any], *, folder: Path) -> Facts:
    """Return nothing: only the user knows the training data of a zoo network."""
    return Facts()
