"""Merge batch norms into the convolutions before them, for networks that only run forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kd3.compute import full_float32
from kd3.models.copying import copy_of
from kd3.models.head import as_logits, evaluating, probe_images

RELATIVE_TOLERANCE = 1e-3  # in float32, where merging moves outputs by about 1e-6 of their size

Outputs = Callable[[nn.Module, Tensor], list[Tensor]]


class Pair(NamedTuple):
    """A convolution and the batch norm that reads its output, by module path."""

    convolution: str
    norm: str


def logits_alone(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the output to compare for most networks: the logits."""
    return [as_logits(network(images))]


@full_float32()
def foldable(network: nn.Module, input_size: int, outputs: Outputs = logits_alone) -> list[Pair]:
    """Return the batch norms that can be merged into the convolution before them, found by trial.

    A run of the network shows which layer feeds which. Then a merged copy's `outputs` are compared with the original's
    on other input, and a pair that changes them (its map is used elsewhere, too) is left out. The network may be in
    training mode; evaluation outputs are compared.
    """
    if not any(type(module) is nn.BatchNorm2d for module in network.modules()):
        return []
    try:
        with evaluating(network), torch.no_grad():
            trial = copy_of(network)
            candidates = _pairs(trial, probe_images(trial, input_size, images=2, seed=0))
            probe = probe_images(network, input_size, images=2, seed=1)
            expected = outputs(network, probe)

            def unchanged() -> bool:
                return all(map(_close, outputs(trial, probe), expected))

            before = [(pair, *_merge(trial, pair)) for pair in candidates]
            if unchanged():
                return candidates
            for pair, convolution, norm in before:
                _put(trial, pair, convolution, norm)
            return [pair for pair in candidates if _keeps(trial, pair, unchanged)]
    except Exception:
        return []  # the network runs (checked elsewhere), but cannot be merged


def fold(network: nn.Module, pairs: list[Pair]) -> nn.Module:
    """Return a copy in evaluation mode with these batch norms merged; the network itself if there are none.

    Module paths stay; the state dict does not.
    """
    if not pairs:
        return network
    merged = copy_of(network).eval().requires_grad_(False)
    for pair in pairs:
        _merge(merged, pair)
    return merged


def _pairs(network: nn.Module, probe: Tensor) -> list[Pair]:
    """Return the pairs in which the first feeds the second and both run once."""
    made: dict[int, tuple[str, Tensor, int]] = {}  # holds the tensors, so that no identity is used twice
    runs: dict[str, int] = {}
    fed: list[Pair] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            runs[name] = runs.get(name, 0) + 1
            if isinstance(module, nn.Conv2d):
                made[id(output)] = (name, output, output._version)
                return
            source = made.get(id(inputs[0]))
            if source is not None and inputs[0]._version == source[2]:  # not changed in place on the way
                fed.append(Pair(source[0], name))

        return hook

    kinds = (nn.Conv2d, nn.BatchNorm2d)
    watched = [(name, module) for name, module in network.named_modules() if type(module) in kinds]
    handles = [module.register_forward_hook(watch(name)) for name, module in watched]
    try:
        network(probe)
    finally:
        for handle in handles:
            handle.remove()
    norms = {name for name, module in watched if getattr(module, "running_mean", None) is not None}
    return [pair for pair in fed if pair.norm in norms and runs[pair.convolution] == runs[pair.norm] == 1]


def _merge(network: nn.Module, pair: Pair) -> tuple[nn.Module, nn.Module]:
    """Merge a pair in place and return the former modules."""
    convolution, norm = network.get_submodule(pair.convolution), network.get_submodule(pair.norm)
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    _put(network, pair, fuse_conv_bn_eval(convolution, norm), nn.Identity())
    return convolution, norm


def _put(network: nn.Module, pair: Pair, convolution: nn.Module, norm: nn.Module) -> None:
    network.set_submodule(pair.convolution, convolution)
    network.set_submodule(pair.norm, norm)


def _keeps(network: nn.Module, pair: Pair, unchanged: Callable[[], bool]) -> bool:
    """Merge a pair if the outputs stay the same."""
    before = _merge(network, pair)
    if unchanged():
        return True
    _put(network, pair, *before)
    return False


def _close(found: Tensor, expected: Tensor) -> bool:
    close = RELATIVE_TOLERANCE * expected.abs().max() if expected.numel() else 0.0
    return found.shape == expected.shape and bool(((found - expected).abs() <= close).all())
