"""Networks that only run forward, made faster: batch norms merged into convolutions, or one compiled graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kd3.models.calling import copy_of
from kd3.models.head import Head, ModelOutput, as_logits, evaluating, hooked, probe_images
from kd3.runtime.compute import full_float32
from kd3.runtime.errors import KD3Error, in_brief

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
    with hooked(module.register_forward_hook(watch(name)) for name, module in watched):
        network(probe)
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


class CompiledTeacher:
    """Runs a frozen network compiled: images -> features and logits, as `run_with_features` gives them.

    The compiled copy shares the network's parameters. These must not change any more, since the compiler may change
    their layout. The network itself is unchanged.

    Args:
        network: in evaluation mode, on its device, where it stays.
        head: its head; None: no features, a map without channels.
    """

    def __init__(self, network: nn.Module, head: Head | None) -> None:
        self._name, self._relu = type(network).__name__, head is not None and head.relu
        # Steps have one shape; another shape would trigger a new compilation.
        self._run = torch.compile(_Tapped(network, head).eval(), dynamic=False, options={"freezing": True})

    def __call__(self, images: Tensor) -> ModelOutput:
        """Shapes: (B, 3, H, W) -> features (B, C, h, w), logits (B, K). Without gradients.

        Raises:
            KD3Error: it does not compile here.
        """
        try:
            with torch.no_grad():
                features, logits = self._run(images)
        except Exception as problem:
            raise KD3Error(
                f"the teacher ({self._name}) cannot be compiled here: {in_brief(problem)}; run without "
                f"--compile-teacher"
            ) from problem
        return ModelOutput(torch.relu(features) if self._relu else features, logits)


class _Tapped(nn.Module):
    """A network that also returns the feature map at its head: hooked before compilation."""

    def __init__(self, network: nn.Module, head: Head | None) -> None:
        super().__init__()
        self.network = _twin(network)
        self.seen: Tensor | None = None
        if head is None:
            return
        if head.features is None or head.side == "input":
            path = head.classifier if head.features is None else head.features
            self.network.get_submodule(path).register_forward_pre_hook(self._see_input)
        else:
            self.network.get_submodule(head.features).register_forward_hook(self._see_output)

    def _see_input(self, module: nn.Module, inputs: Any) -> None:
        self.seen = inputs[0]

    def _see_output(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.seen = output

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = as_logits(self.network(images))
        features = images.new_empty(len(images), 0, 1, 1) if self.seen is None else self.seen
        return features[:, :, None, None] if features.ndim == 2 else features, logits


def _twin(network: nn.Module) -> nn.Module:
    """Return a copy of the modules that shares every parameter and buffer."""
    shared = {id(tensor): tensor for tensor in [*network.parameters(), *network.buffers()]}
    return copy.deepcopy(network, shared)
