"""Removable blocks of a network: those whose input and output have one shape."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kd3.inheritance.blocks import is_row, units
from kd3.models.head import evaluating


@dataclass(frozen=True)
class Block:
    """A removable part of a network: one module, or consecutive plain layers."""

    paths: tuple[str, ...]

    @property
    def row(self) -> str:
        """Path of the parent module, which contains similar ones."""
        return self.paths[0].rpartition(".")[0]

    def __str__(self) -> str:
        first, last = self.paths[0], self.paths[-1]
        return first if first == last else f"{first} to {last.rpartition('.')[2]}"


@dataclass(frozen=True)
class _Call:
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    output: Any


def droppable_blocks(network: nn.Module, images: Tensor) -> list[Block]:
    """Return the removable blocks in order of execution.

    The innermost modules that carry their input past their weights (residual blocks); in a network without these, each
    convolution or linear layer of a Sequential, with the norm and activation behind it, that keeps the shape.

    Shapes: images (B, C, H, W), network inputs; two are enough.
    """
    calls = _calls(network, images)
    found = [path for path, call in calls.items() if _is_residual(network.get_submodule(path), call)]
    outer = {path for path in found if any(other.startswith(f"{path}.") for other in found)}
    blocks = [Block((path,)) for path in found if path not in outer]
    return blocks or _plain_units(network, calls)


def _calls(network: nn.Module, images: Tensor) -> dict[str, _Call]:
    """Return the call of every module that runs once and keeps the shape of its first argument, in order."""
    runs: Counter[str] = Counter()
    calls: dict[str, _Call] = {}

    def watch(path: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            runs[path] += 1
            first = arguments[0] if arguments else None
            if isinstance(first, Tensor) and isinstance(output, Tensor) and first.shape == output.shape:
                calls[path] = _Call(arguments, keywords, output)

        return hook

    handles = [
        module.register_forward_hook(watch(path), with_kwargs=True) for path, module in network.named_modules() if path
    ]
    try:
        with torch.no_grad(), evaluating(network):
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return {path: call for path, call in calls.items() if runs[path] == 1}


def _is_residual(module: nn.Module, call: _Call) -> bool:
    """Return whether a module with zero weights returns its input, or its input after a ReLU."""
    parameters = list(module.parameters())
    x = call.arguments[0]
    if not parameters or not list(module.children()) or not x.is_floating_point():
        return False
    values = [parameter.data for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.data = torch.zeros_like(parameter.data)
        with torch.no_grad(), evaluating(module):
            output = module(x, *call.arguments[1:], **call.keywords)
    except Exception:  # user code, called out of context
        return False
    finally:
        for parameter, data in zip(parameters, values, strict=True):
            parameter.data = data
    return any(torch.allclose(output, expected, atol=1e-6) for expected in (x, torch.relu(x)))


def _plain_units(network: nn.Module, calls: dict[str, _Call]) -> list[Block]:
    found = []
    for path, module in network.named_modules():
        if not is_row(module):
            continue
        for unit in units(module):
            names = tuple(f"{path}.{name}" if path else name for name in unit.children)
            modules = [network.get_submodule(name) for name in names]
            plain = not any(list(part.children()) for part in modules)
            weighted = any(list(part.parameters()) for part in modules)
            if plain and weighted and all(name in calls for name in names):
                found.append(Block(names))
    return found
