"""Channels that a narrower network keeps, chosen by Torch-Pruning, which only this module imports.

Source: DepGraph (arXiv 2301.12900), https://github.com/VainF/Torch-Pruning.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from kd3.models.calling import copy_of
from kd3.models.costs import multiply_adds
from kd3.models.head import as_logits, output_layers
from kd3.models.libraries.common import library
from kd3.models.shrunk import sizes_of
from kd3.runtime.errors import in_brief

STEPS = 32  # each removes the same part of every layer's channels
FEWEST = 0.04  # of a layer's channels that stay
PROBED = 2  # images

History = list[tuple[str, bool, list[int]]]  # layer, whether its outputs, removed channels; see Torch-Pruning


class CannotNarrow(Exception):
    """The network's channels cannot be removed; the message gives the reason."""


def narrowed(network: nn.Module, images: Tensor, *, most: float) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Return the channels that a network keeps, so that at most `most` multiply-adds an image are left.

    Every layer keeps the same part of its channels, those of the largest weights. The network's graph shows dependent
    channels. Layers that make the logits, and parts that fail when narrowed (zero-padded shortcuts, attention heads),
    keep their width. So do the layers that make the features, as long as the others can reach `most`: then the student
    needs no projector before the teacher's classifier, which for wide features is larger than a small student.

    Shapes: images (B, C, H, W), normalised.

    Returns:
        For each parameter and buffer that becomes smaller, by name, the channels kept along each axis (None: all); and
        for each module, by path, the new values of its stored sizes.

    Raises:
        CannotNarrow: no channels, or too few, can be removed.
        KD3Error: Torch-Pruning is missing.
    """
    pruning = library("torch_pruning", extra="shrink", needs="; without it, shrink:depth:SHARE leaves out blocks only")
    images = images[:PROBED].cpu()
    with _quiet(), _followed():
        trial = copy_of(network).cpu()
        graph, heads = _graph(pruning, trial, images), output_layers(trial, images.shape[-1])
        features = _feature_layers(graph, trial, heads)
        stiff = [*heads, *_stiff(graph, trial, images)]
        try:
            history = _history(pruning, network, images, most, ignored=[*stiff, *features])
        except CannotNarrow:
            history = _history(pruning, network, images, most, ignored=stiff)
    marked = copy_of(network).cpu().double()
    with torch.no_grad():
        for tensor in _tensors(marked).values():
            tensor.copy_(torch.arange(tensor.numel()).reshape(tensor.shape))
    before = {name: tensor.shape for name, tensor in _tensors(marked).items()}
    sizes = {(path, name): value for path, name, value in sizes_of(marked)}
    with _quiet(), _followed():
        graph = _graph(pruning, marked, images.double())
        graph.load_pruning_history(history)
    kept = {
        name: _kept(tensor, before[name]) for name, tensor in _tensors(marked).items() if tensor.shape != before[name]
    }
    changed: dict[str, Any] = {}
    for path, name, value in sizes_of(marked):
        if value != sizes[path, name]:
            changed.setdefault(path, {})[name] = value
    return kept, changed


def _history(pruning: Any, network: nn.Module, images: Tensor, most: float, *, ignored: list[str]) -> History:
    """Return the channels to remove to reach `most` multiply-adds, none of the ignored layers' outputs."""
    narrow = copy_of(network).cpu().eval().requires_grad_(True)
    pruner = pruning.pruner.BasePruner(
        narrow,
        images,
        importance=pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=1 - FEWEST,
        iterative_steps=STEPS,
        ignored_layers=[narrow.get_submodule(path) for path in ignored],
        in_channel_groups={},  # the default is shared by all pruners
        out_channel_groups={},
    )
    left = multiply_adds(narrow, images)
    for _ in range(STEPS):
        if left > most:
            pruner.step()
            left = multiply_adds(narrow, images)
    history = list(pruner.pruning_history())
    if not history:
        raise CannotNarrow("no channels of it can be left out")
    if left > most:
        raise CannotNarrow(f"leaving out channels brings it to {left:,} multiply-adds an image at least")
    return history


def _feature_layers(graph: Any, network: nn.Module, heads: list[str]) -> list[str]:
    """Return the layers whose outputs are the channels that the last layers read, also by way of additions."""
    names = {module: name for name, module in network.named_modules()}
    found: list[str] = []
    for path in heads:
        reader = network.get_submodule(path)
        reads = graph.get_pruner_of_module(reader).prune_in_channels
        for dep, _ in graph.get_pruning_group(reader, reads, list(range(graph.get_in_channels(reader)))):
            module = dep.target.module
            if graph.is_out_channel_pruning_fn(dep.handler) and isinstance(module, (nn.Conv2d, nn.Linear)):
                found.append(names[module])
    return found


def _stiff(graph: Any, network: nn.Module, images: Tensor) -> list[str]:
    """Return the layers whose outputs cannot be reduced; the network is unchanged.

    Without half of them the network fails, or its outputs differ from those with that half unread. For example, the
    library treats a padding of channels as an elementwise operation.
    """
    names = {module: name for name, module in network.named_modules()}
    found: list[str] = []
    for group in list(graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear])):
        root = group[0].dep.target.module
        half = graph.get_pruning_group(root, group[0].dep.handler, list(range(graph.get_out_channels(root) // 2)))
        before = _state(network)
        try:
            expected = _unread(graph, half, network, images)
            half.prune(record_history=False)
            logits = _logits(network, images)
            same = expected is None or torch.allclose(
                logits, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())
            )
        except Exception:  # user code, or the library
            same = False
        if not same:
            found.append(names[root])
        _restore(before)
    return found


def _unread(graph: Any, group: Any, network: nn.Module, images: Tensor) -> Tensor | None:
    """Return the logits if no layer reads the channels of a group; None if a norm over channels sees them."""
    weights: list[tuple[nn.Conv2d | nn.Linear, Any]] = []
    try:
        for dep, places in group:
            module = dep.target.module
            if isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)):
                return None
            reads = graph.is_in_channel_pruning_fn(dep.handler) and not graph.is_out_channel_pruning_fn(dep.handler)
            if reads and isinstance(module, (nn.Conv2d, nn.Linear)) and getattr(module, "groups", 1) == 1:
                weights.append((module, module.weight))
                silent = module.weight.detach().clone()
                silent[:, places] = 0
                module.weight = nn.Parameter(silent)
        return _logits(network, images)
    finally:
        for module, weight in reversed(weights):
            module.weight = weight


def _logits(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return as_logits(network(images))


def _graph(pruning: Any, network: nn.Module, images: Tensor) -> Any:
    network.eval().requires_grad_(True)
    return pruning.DependencyGraph().build_dependency(network, example_inputs=images)


def _state(network: nn.Module) -> list[tuple[nn.Module, dict[str, Any], dict[str, Any], dict[str, Any]]]:
    return [
        (module, dict(module._parameters), dict(module._buffers), dict(vars(module))) for module in network.modules()
    ]


def _restore(state: list[tuple[nn.Module, dict[str, Any], dict[str, Any], dict[str, Any]]]) -> None:
    for module, parameters, buffers, values in state:
        vars(module).update(values)
        module._parameters.update(parameters)
        module._buffers.update(buffers)


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _kept(marked: Tensor, before: torch.Size) -> list[list[int] | None]:
    """Return the remaining positions along each axis of a tensor whose values encode its original positions."""
    flat = marked.detach().long()
    kept: list[list[int] | None] = []
    for axis, size in enumerate(before):
        if marked.shape[axis] == size:
            kept.append(None)
            continue
        first = flat.movedim(axis, 0).reshape(flat.shape[axis], -1)[:, 0]
        stride = before[axis + 1 :].numel()
        kept.append([int(place) // stride % size for place in first])
    return kept


@contextmanager
def _followed() -> Iterator[None]:
    """Convert any of the library's errors on a network to one sentence."""
    try:
        yield
    except CannotNarrow:
        raise
    except Exception as problem:
        raise CannotNarrow(f"Torch-Pruning cannot follow its channels ({in_brief(problem)})") from problem


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
