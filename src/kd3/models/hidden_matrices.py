"""Hidden matrices of a network: weights between hidden activations, recognised by the kind of module."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

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
