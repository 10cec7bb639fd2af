"""The teacher compiled: its features and logits as one graph."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from kd3.errors import KD3Error
from kd3.models.head import Head, ModelOutput, as_logits


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
            first = (str(problem).strip().splitlines() or [""])[0][:200]
            raise KD3Error(
                f"the teacher ({self._name}) cannot be compiled here: {type(problem).__name__}: {first}; "
                f"run without --compile-teacher"
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
