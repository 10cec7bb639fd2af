"""Find a classifier's head: the linear layer that makes the logits and the features it pools.

Found by running the network once and looking at what passes through it, then verified on other
input: no wrapper code, no naming convention.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from kd3.errors import KD3Error

RELATIVE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Head:
    """Where a network's classifier and features are, by module path."""

    classifier: str  # the nn.Linear whose output is the logits
    features: str | None  # the module at which the feature map is seen; None: no map, a vector
    side: Literal["output", "input"]  # seen coming out of that module, or going in
    relu: bool  # the map is pooled after a ReLU that is no module of its own
    channels: int  # of the features, the classifier's inputs
    num_classes: int

    def __str__(self) -> str:
        if self.features is None:
            return f"input vector of '{self.classifier}' ({self.channels})"
        after = ", after a ReLU" if self.relu else ""
        return f"{self.side} of '{self.features}'{after} ({self.channels} channels)"


class ModelOutput(NamedTuple):
    """What a forward pass gives."""

    features: Tensor  # (B, C, h, w); a vector is a map of 1 x 1
    logits: Tensor  # (B, K)


class HeadNotFound(Exception):
    """The network's head cannot be shared; the message says why."""


def as_logits(output: Any) -> Tensor:
    """Return the logits in what a network returned: a tensor, `.logits`, `['logits']` or a tuple's first."""
    if isinstance(output, dict):
        output = output.get("logits", output)
    output = getattr(output, "logits", output)
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.ndim != 2:
        what = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise HeadNotFound(f"the network returns {what}; logits of shape (images, classes) are expected")
    return output


def logits_of_a_blank(network: nn.Module, input_size: int, *, what: str) -> Tensor:
    """Return the network's logits of two blank images, (2, K), in evaluation mode.

    Raises:
        KD3Error: it does not run on images of this size, or returns no logits; told of `what`.
    """
    parameter = next(network.parameters(), torch.zeros(()))
    try:
        with evaluating(network), torch.no_grad():
            return as_logits(network(torch.zeros(2, 3, input_size, input_size, device=parameter.device)))
    except HeadNotFound as problem:
        raise KD3Error(f"{what}: {problem}") from None
    except Exception as problem:
        first = str(problem).splitlines()[0] if str(problem) else ""
        raise KD3Error(
            f"{what} does not run on an image of {input_size} x {input_size} pixels: {type(problem).__name__}: {first}"
        ) from problem


def find_head(network: nn.Module, input_size: int) -> Head:
    """Return the head of a classifier, found and verified.

    The classifier is the `nn.Linear` whose output is the network's own logits. The feature map is
    the last (B, C, h, w) that passes into or out of a module and whose mean over h, w is the
    classifier's input; where there is none (vision transformers, a norm or a layer in between),
    the classifier's input vector serves.

    Raises:
        HeadNotFound: no linear layer makes the logits; the message says what was seen.
    """
    if isinstance(network, torch.jit.ScriptModule):
        raise HeadNotFound("it is TorchScript, inside of which features cannot be watched")
    probe = probe_images(network, input_size, images=4, seed=0)
    with evaluating(network), torch.no_grad():
        trace = _Trace(network)
        with trace:
            logits = as_logits(network(probe))
        head = _match(trace, logits)
        other = probe_images(network, input_size, images=3, seed=1)
        try:
            _verify(network, head, other)
        except HeadNotFound:
            # What matched may have matched by chance; the classifier's input is always right.
            head = replace(head, features=None, side="input", relu=False)
            _verify(network, head, other)
    return head


def run_with_features(network: nn.Module, head: Head, images: Tensor) -> ModelOutput:
    """Return the network's features and logits in one pass.

    Shapes: (B, 3, H, W) -> features (B, C, h, w), logits (B, K).
    """
    seen: list[Tensor] = []
    if head.features is None or head.side == "input":
        path = head.classifier if head.features is None else head.features
        handle = network.get_submodule(path).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    else:
        module = network.get_submodule(head.features)
        handle = module.register_forward_hook(lambda _, __, output: seen.append(output))
    try:
        logits = as_logits(network(images))
    finally:
        handle.remove()
    features = seen[-1]
    if head.features is None:
        features = features[:, :, None, None]
    return ModelOutput(torch.relu(features) if head.relu else features, logits)


def pool(features: Tensor) -> Tensor:
    """Return the mean of a feature map over its places: (B, C, h, w) -> (B, C)."""
    return features.mean(dim=(2, 3))


class _Trace:
    """Records what passes through a network's modules, in order of execution."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.maps: list[tuple[str, Literal["output", "input"], Tensor]] = []
        self.linears: list[tuple[str, Tensor, Tensor]] = []

    def __enter__(self) -> None:
        self.handles: list[Any] = []
        for name, module in self.network.named_modules():
            self.handles.append(module.register_forward_hook(self._hook(name)))

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _hook(self, name: str) -> Any:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            first = inputs[0] if inputs else None
            if isinstance(module, nn.Linear) and isinstance(first, Tensor) and first.ndim == 2:
                self.linears.append((name, first, output))
            if name and isinstance(first, Tensor) and first.ndim == 4:
                self.maps.append((name, "input", first))
            if name and isinstance(output, Tensor) and output.ndim == 4:
                self.maps.append((name, "output", output))

        return record


def _match(trace: _Trace, logits: Tensor) -> Head:
    makers = [(n, i) for n, i, o in trace.linears if o.shape == logits.shape and _close(o, logits)]
    if not makers:
        sizes = sorted({o.shape[1] for _, _, o in trace.linears})
        seen = f"the linear layers put out {sizes} values" if sizes else "there is no linear layer"
        raise HeadNotFound(f"no nn.Linear puts out the {logits.shape[1]} logits themselves ({seen})")
    name, vector = makers[-1]
    if name == "":
        raise HeadNotFound("the network is a single linear layer; there are no features to share")
    if not bool(vector.abs().max() > 0):
        raise HeadNotFound(f"the input of the classifier '{name}' is all zeros")
    size = {"channels": vector.shape[1], "num_classes": logits.shape[1]}
    for path, side, values in reversed(trace.maps):
        if values.shape[1] != vector.shape[1] or values.shape[2] * values.shape[3] == 1:
            continue
        for relu in (False, True):
            if _close(pool(torch.relu(values) if relu else values), vector):
                return Head(name, path, side, relu, **size)
    return Head(name, None, "input", False, **size)


def _verify(network: nn.Module, head: Head, images: Tensor) -> None:
    output = run_with_features(network, head, images)
    classifier = network.get_submodule(head.classifier)
    if not _close(classifier(pool(output.features)), output.logits):
        raise HeadNotFound(
            f"pooling the features ({head}) and applying '{head.classifier}' does not give the network's logits"
        )


def _close(a: Tensor, b: Tensor) -> bool:
    scale = float(b.abs().max()) + 1e-12
    return a.shape == b.shape and bool((a - b).abs().max() <= RELATIVE_TOLERANCE * scale)


def probe_images(network: nn.Module, input_size: int, *, images: int, seed: int) -> Tensor:
    """Return random images of the kind that a network takes, where its parameters are: (images, 3, S, S)."""
    generator = torch.Generator().manual_seed(seed)
    probe = torch.randn(images, 3, input_size, input_size, generator=generator)
    parameter = next(network.parameters(), None)
    return probe if parameter is None else probe.to(parameter.device, parameter.dtype)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and each of its modules back afterwards."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
