"""A classifier's parts: the linear layer that makes the logits, the features that it pools, the hidden matrices.

Find a classifier's head: the linear layer that makes the logits and the features it pools. One observed run of the
network finds it; a second run on other input verifies it. No wrapper code, no naming convention.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kd3.models.calling import both_logits, calling_of
from kd3.runtime.compute import full_float32
from kd3.runtime.text import first_of

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def hidden_matrices(network: nn.Module, *, besides: Collection[nn.Module] = ()) -> list[Tensor]:
    """Return the weights of linear layers, convolutions and attention's projections, each once, in their order.

    `besides` are layers that are not hidden: classifiers, embeddings that a loss compares. Excluded are weights shared
    with another kind of module (such as an embedding), biases, norms, class tokens, position tables and parameters of
    other kinds of modules.
    """
    found: dict[int, Tensor] = {}
    others: set[int] = set()
    for module in network.modules():
        held = dict(module.named_parameters(recurse=False))
        hidden = [] if any(module is layer for layer in besides) else _names(module)
        for name, parameter in held.items():
            if name in hidden:
                found[id(parameter)] = parameter
            else:
                others.add(id(parameter))
    return [parameter for key, parameter in found.items() if key not in others]


def _names(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, LAYERS):
        return ("weight",)
    return ATTENTION if isinstance(module, nn.MultiheadAttention) else ()


RELATIVE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Head:
    """Module paths of a network's classifier and features."""

    classifier: str  # the linear layer whose output is the logits: an nn.Linear, or a convolution of 1 x 1
    features: str | None  # the module with the feature map; None: a vector, no map
    side: Literal["output", "input"]  # of that module
    relu: bool  # a functional ReLU precedes the pooling
    channels: int  # of the features, the classifier's inputs
    num_classes: int

    def __str__(self) -> str:
        if self.features is None:
            return f"input vector of '{self.classifier}' ({self.channels})"
        after = ", after a ReLU" if self.relu else ""
        return f"{self.side} of '{self.features}'{after} ({self.channels} channels)"


class ModelOutput(NamedTuple):
    """Result of a forward pass."""

    features: Tensor  # (B, C, h, w); a vector is a map of 1 x 1
    logits: Tensor  # (B, K)


class HeadNotFound(Exception):
    """The network's head cannot be shared; the message says why."""


def as_logits(output: Any) -> Tensor:
    """Return the logits of a network's output: a tensor, `.logits`, `['logits']` or a tuple's first item."""
    if isinstance(output, dict):
        output = output.get("logits", output)
    output = getattr(output, "logits", output)
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.ndim != 2:
        what = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise HeadNotFound(f"the network returns {what}; logits of shape (images, classes) are expected")
    return output


@full_float32()
def find_head(network: nn.Module, input_size: int) -> Head:
    """Return the head of a classifier, found and verified.

    The classifier is the layer whose output is the network's own logits: an `nn.Linear`, or a convolution of 1 x 1
    before or after the pooling; of a network whose one logit z stands for (0, z), the layer that makes z. The feature
    map is the last input or output (B, C, h, w) of a module whose mean over h, w is the classifier's input. Without one
    (vision transformers, a norm or a layer in between), the classifier's input vector is used.

    Raises:
        HeadNotFound: no such layer makes the logits; the message describes the findings.
    """
    if isinstance(network, torch.jit.ScriptModule):
        raise HeadNotFound("it is TorchScript, inside of which features cannot be watched")
    probe = probe_images(network, input_size, images=4, seed=0)
    with evaluating(network), torch.no_grad():
        trace = _Trace(network)
        with trace.recording():
            logits = as_logits(network(probe))
        head = _match(trace, logits)
        other = probe_images(network, input_size, images=3, seed=1)
        try:
            _verify(network, head, other)
        except HeadNotFound:
            # The match may be a coincidence; the classifier's input is always right.
            head = replace(head, features=None, side="input", relu=False)
            _verify(network, head, other)
    return head


def output_layers(network: nn.Module, input_size: int) -> list[str]:
    """Return the layers that make the logits, by module path, also of a network whose head cannot be shared.

    The last layer whose output is the logits. Otherwise all layers with as many outputs (several heads, or a scaled
    head); otherwise the last linear layer that ran. Empty if no layer can be observed.
    """
    if isinstance(network, torch.jit.ScriptModule):
        return []
    with evaluating(network), torch.no_grad():
        trace = _Trace(network)
        with trace.recording():
            logits = as_logits(network(probe_images(network, input_size, images=4, seed=0)))
    makers = [layer.name for layer in trace.layers if _close(layer.output, logits)][-1:]
    alike = [layer.name for layer in trace.layers if layer.output.shape == logits.shape]
    return makers or alike or [layer.name for layer in trace.layers][-1:]


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
    with handle:
        logits = as_logits(network(images))
    features = seen[-1]
    if features.ndim == 2:
        features = features[:, :, None, None]
    return ModelOutput(torch.relu(features) if head.relu else features, logits)


def global_avg_pool(features: Tensor) -> Tensor:
    """Return the mean of a feature map over its positions: (B, C, h, w) -> (B, C)."""
    return features.mean(dim=(2, 3))


def is_pointwise(module: nn.Module) -> bool:
    """Return whether a module is a convolution equal to a linear layer at each position: 1 x 1, no groups, stride or
    padding.
    """
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == module.stride == (1, 1)
        and module.groups == 1
        and module.padding in ((0, 0), "valid")
    )


class _Layer(NamedTuple):
    """A linear layer in one run. Input and output of a 1 x 1 convolution are pooled, since it commutes with pooling."""

    name: str
    vector: Tensor  # (B, C)
    output: Tensor  # (B, K)


class _Trace:
    """Records the tensors that pass through a network's modules, in order of execution."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.maps: list[tuple[str, Literal["output", "input"], Tensor]] = []
        self.layers: list[_Layer] = []

    def recording(self) -> AbstractContextManager[None]:
        """Record every run within the context."""
        return hooked(part.register_forward_hook(self._hook(name)) for name, part in self.network.named_modules())

    def _hook(self, name: str) -> Any:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            first = inputs[0] if inputs else None
            if isinstance(module, nn.Linear) and isinstance(first, Tensor) and first.ndim == 2:
                self.layers.append(_Layer(name, first, output))
            if is_pointwise(module) and isinstance(first, Tensor) and first.ndim == 4:
                self.layers.append(_Layer(name, global_avg_pool(first), global_avg_pool(output)))
            if name and isinstance(first, Tensor) and first.ndim == 4:
                self.maps.append((name, "input", first))
            if name and isinstance(output, Tensor) and output.ndim == 4:
                self.maps.append((name, "output", output))

        return record


def _match(trace: _Trace, logits: Tensor) -> Head:
    makers = [layer for layer in trace.layers if _close(_as_many(layer.output, logits), logits)]
    if not makers:
        raise HeadNotFound(_why_none(trace, logits))
    name, vector, _ = makers[-1]
    if name == "":
        raise HeadNotFound("the network is a single linear layer; there are no features to share")
    size = {"channels": vector.shape[1], "num_classes": logits.shape[1]}
    # An untrained network's may be all zeros, which any zero map would match.
    maps = reversed(trace.maps) if bool(vector.abs().max() > 0) else []
    for path, side, values in maps:
        if values.shape[1] != vector.shape[1] or values.shape[2] * values.shape[3] == 1:
            continue
        for relu in (False, True):
            if _close(global_avg_pool(torch.relu(values) if relu else values), vector):
                return Head(name, path, side, relu, **size)
    return Head(name, None, "input", False, **size)


def _why_none(trace: _Trace, logits: Tensor) -> str:
    """Return a description of the findings instead of a layer that makes the logits."""
    count = logits.shape[1]
    alike = [layer for layer in trace.layers if layer.output.shape == logits.shape]
    linear = [layer for layer in alike if isinstance(trace.network.get_submodule(layer.name), nn.Linear)]
    heads = linear or alike
    names = " and ".join(f"'{layer.name}'" for layer in heads)
    if len(heads) > 1 and _close(torch.stack([layer.output for layer in heads]).mean(0), logits):
        return f"its {count} logits are the mean of {len(heads)} heads, {names}, each with an input of its own"
    if heads:
        return (
            f"no layer puts out the {count} logits themselves: {names} {'put' if len(heads) > 1 else 'puts'} out "
            f"{count} values, and something follows"
        )
    if any(isinstance(module, torch.fx.GraphModule) for module in trace.network.modules()):
        return "it is an exported program, inside of which layers cannot be told apart"
    if any(isinstance(module, torch.jit.ScriptModule) for module in trace.network.modules()):
        return "it is TorchScript inside, where features cannot be watched"
    sizes = sorted({layer.output.shape[1] for layer in trace.layers})
    seen = f"the linear layers put out {first_of(sizes, 8)} values" if sizes else "there is no linear layer"
    return f"no layer puts out the {count} logits themselves ({seen})"


def _verify(network: nn.Module, head: Head, images: Tensor) -> None:
    output = run_with_features(network, head, images)
    classifier = network.get_submodule(head.classifier)
    pooled = global_avg_pool(output.features)
    made = classifier(pooled) if isinstance(classifier, nn.Linear) else classifier(pooled[:, :, None, None]).flatten(1)
    if not _close(_as_many(made, output.logits), output.logits):
        raise HeadNotFound(
            f"pooling the features ({head}) and applying '{head.classifier}' does not give the network's logits"
        )


def _as_many(made: Tensor, logits: Tensor) -> Tensor:
    """Return a layer's single value z per image as the logits (0, z), if there are two logits."""
    return both_logits(made) if made.shape[1] == 1 and logits.shape[1] == 2 else made


def _close(a: Tensor, b: Tensor) -> bool:
    # Relative only: outputs of an untrained network may be as small as 1e-29.
    return a.shape == b.shape and bool((a - b).abs().max() <= RELATIVE_TOLERANCE * b.abs().max())


def probe_images(network: nn.Module, input_size: int, *, images: int, seed: int) -> Tensor:
    """Return random input images on the device of the network's parameters: (images, C, S, S)."""
    generator = torch.Generator().manual_seed(seed)
    probe = torch.randn(images, calling_of(network).channels, input_size, input_size, generator=generator)
    parameter = next(network.parameters(), None)
    return probe if parameter is None else probe.to(parameter.device, parameter.dtype)


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Keep hooks on modules within the context; `handles` registers them as it is iterated."""
    with ExitStack() as held:
        for handle in handles:
            held.callback(handle.remove)
        yield


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and restore each module's mode afterwards."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
