"""A network made smaller by a plan of removed blocks and channels; no weights are needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kd3.config.shrink import ShrinkPlan
from kd3.runtime.errors import KD3Error


class PassedOn(nn.Module):
    """Replacement for a removed block: returns its first input unchanged."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return x."""
        return x


def shrink(network: nn.Module, plan: ShrinkPlan) -> None:
    """Remove the plan's blocks from a network, then the channels of its parameters and buffers.

    The remaining values are unchanged: a student of a trained network starts from them.

    Raises:
        KD3Error: the plan is for another network: a name or a channel is missing.
    """
    for path in plan.blocks:
        _module(network, path)
        network.set_submodule(path, PassedOn())
    for name, axes in plan.tensors.items():
        path, _, own = name.rpartition(".")
        module = _module(network, path)
        tensor = module._parameters.get(own, module._buffers.get(own))
        if tensor is None or tensor.ndim != len(axes):
            raise _another_networks(name)
        values = tensor.detach()
        for axis, place in enumerate(axes):
            if place is not None:
                values = values.index_select(axis, _channels(plan, place, values.shape[axis], name, values.device))
        if own in module._parameters:
            module._parameters[own] = nn.Parameter(values, requires_grad=tensor.requires_grad)
        else:
            module._buffers[own] = values
    for path, sizes in plan.sizes.items():
        module = _module(network, path)
        for name, size in sizes.items():
            before = vars(module).get(name)
            if not may_become(before, size):
                raise _another_networks(f"{path}.{name}")
            setattr(module, name, tuple(size) if isinstance(size, list) else size)


def may_become(before: object, size: object) -> bool:
    """Return whether a number (or a row of numbers) stored in a module may be replaced by a smaller one.

    A plan may come from an untrusted folder; it may only reduce sizes.
    """
    if isinstance(before, tuple):
        same = isinstance(size, (list, tuple)) and len(size) == len(before)
        return same and all(may_become(a, b) for a, b in zip(before, size, strict=True))  # type: ignore[call-overload]
    if isinstance(before, bool) or not isinstance(before, int):
        return False
    return isinstance(size, int) and not isinstance(size, bool) and 1 <= size <= before


def sizes_of(network: nn.Module) -> Iterator[tuple[str, str, int | tuple[int, ...]]]:
    """Yield path, name and value of every number, or row of numbers, stored in the modules of a network."""
    for path, module in network.named_modules():
        for name, value in vars(module).items():
            if not name.startswith("_") and may_become(value, value):
                yield path, name, value


def _module(network: nn.Module, path: str) -> nn.Module:
    try:
        return network.get_submodule(path)
    except AttributeError:
        raise _another_networks(path) from None


def _channels(plan: ShrinkPlan, place: int, size: int, name: str, device: torch.device) -> Tensor:
    if not 0 <= place < len(plan.kept):
        raise _another_networks(name)
    kept = torch.tensor(plan.kept[place], device=device, dtype=torch.int64)
    if not len(kept) or int(kept.min()) < 0 or int(kept.max()) >= size:
        raise _another_networks(name)
    return kept


def _another_networks(name: str) -> KD3Error:
    return KD3Error(f"the plan of the smaller network does not fit this one: {name[:200]!r} is not as the plan has it")
