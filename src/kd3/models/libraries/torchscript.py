"""`torchscript:FILE`: a network saved by `torch.jit.save`. Loading one runs the code in it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kd3.models.libraries.common import Facts, no_student, read


def build(
    name: str, num_classes: int, arch_args: Mapping[str, Any], *, input_size: int | None, folder: Path
) -> nn.Module:
    """Refuse: it cannot be trained again."""
    raise no_student("torchscript", name)


def trained(name: str, arch_args: Mapping[str, Any], *, folder: Path) -> nn.Module:
    """Return the network, on the CPU."""
    return read("torchscript", name, arch_args, folder, _load)


def facts(name: str, arch_args: Mapping[str, Any], *, folder: Path) -> Facts:
    """Return nothing: the file does not describe its input."""
    return Facts()


def _load(path: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript as a whole
        network: nn.Module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    return network
