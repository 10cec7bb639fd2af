"""Matrices inside a network: weights from hidden values to hidden values, recognised by the kind of module."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def hidden_matrices(network: nn.Module, *, besides: Collection[nn.Module] = ()) -> list[Tensor]:
    """Return the weights of linear layers, convolutions and attention's projections, each once, in their order.

    `besides` are layers that are not hidden: classifiers, embeddings that a loss compares. A weight that a module of
    another kind holds as well, such as an embedding, is none. Biases, norms, class tokens, tables of positions and
    parameters of modules of other kinds are not among them.
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
