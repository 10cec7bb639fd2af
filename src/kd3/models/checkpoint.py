"""Load weights from common checkpoint layouts, and report the steps in one sentence."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from kd3.errors import KD3Error
from kd3.models.checkpoint_file import read_state_dict
from kd3.models.checkpoint_names import Fit, best_fit, some
from kd3.models.zoo.resnet_cifar import PaddedShortcut


def load_weights(
    module: nn.Module,
    path: Path,
    *,
    where: str,
    trusted: bool = False,
    key: str | None = None,
    prefix: str | None = None,
) -> str:
    """Load a checkpoint into a network completely, or not at all; return a sentence that describes it.

    The file holds a state dict (`.safetensors`, or anything that `torch.load` reads), bare or under
    `state_dict`, `model_state_dict`, `model`, `net`, `module` or an average's name. Prefixes are removed. The names
    `fc` / `linear` / `classifier` and `downsample` / `shortcut` are exchanged only where that makes the names fit.
    Training state (a loss's weights, a metric's counters) is ignored. Nothing in the file is executed unless it is
    trusted; then it may be a whole pickled network.

    Args:
        module: the network; unchanged on an error.
        path: the checkpoint.
        where: the origin of the request, at the start of messages ("teacher.yaml").
        trusted: let a pickle run its code.
        key: name of the state dict in the file; None: found automatically.
        prefix: of the network's names in the file; None: found automatically.

    Raises:
        KD3Error: the file cannot be read, does not fit the network, or holds values that are not finite.
    """
    place = f"{where}: {path}"
    tensors, notes = read_state_dict(path, where=where, trusted=trusted, key=key)
    target = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    fit = best_fit(tensors, target, prefix=prefix, place=place)
    _check_fit(fit, module, target, place)
    for name, tensor in fit.tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise KD3Error(f"{where}: {path} holds values that are not finite, first in {name!r}")
    try:
        # Not strict: counters may be missing. The names were compared above.
        module.load_state_dict(dict(fit.tensors), strict=False)
    except RuntimeError as error:  # a module with its own loading rules
        raise KD3Error(f"{where}: {path} cannot be loaded: {error}") from error
    details = "; ".join((*notes, *fit.changes))
    return f"loaded {len(fit.tensors)} tensors from {path.name}" + (f" ({details})" if details else "")


def weights_hash(module: nn.Module) -> str:
    """Return a SHA-256 of a network's weights, in hex: the key of results computed with them.

    Equal for equal names, shapes, types and values in the state dict, on any device and in any
    memory format.
    """
    digest = hashlib.sha256()
    state = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(plain.view(torch.uint8).numpy().data)  # bytes, as NumPy has no bfloat16
    return digest.hexdigest()


def _check_fit(fit: Fit, module: nn.Module, target: Mapping[str, Tensor], place: str) -> None:
    wrong = [k for k, v in fit.tensors.items() if k in target and v.shape != target[k].shape]
    if fit.misfits == 0 and not wrong:
        return
    if fit.misfits == 0 and (counts := _class_counts(fit, module, target, wrong)):
        raise KD3Error(
            f"{place} is for {counts[0]} classes, the description says {counts[1]} (only the classifier "
            f"{wrong[0].rpartition('.')[0]!r} differs)"
        )
    parts = []
    if fit.missing:
        parts.append(f"{len(fit.missing)} missing ({some(fit.missing)})")
    if fit.left_over:
        parts.append(f"{len(fit.left_over)} left over ({some(fit.left_over)})")
    if wrong:
        shapes = [f"{k} is {_shape(fit.tensors[k])} in the file, {_shape(target[k])} in the network" for k in wrong]
        parts.append(f"{len(wrong)} of another shape ({some(shapes)})")
    sizes = f"{len(fit.tensors)} tensors in the file, {len(target)} in the network"
    hint = _projections_hint(fit, module)
    raise KD3Error(f"{place} does not fit the architecture ({sizes}): {'; '.join(parts)}{hint}")


def _projections_hint(fit: Fit, module: nn.Module) -> str:
    """Return a hint for a zoo network with weightless shortcuts and a file whose shortcuts have weights."""
    padded = any(isinstance(part, PaddedShortcut) for part in module.modules())
    projected = [name for name in fit.left_over if ".shortcut." in name or ".downsample." in name]
    if not padded or not projected:
        return ""
    return "; the file's shortcuts are projections: write arch_args: {shortcut: B}"


def _class_counts(
    fit: Fit, module: nn.Module, target: Mapping[str, Tensor], wrong: list[str]
) -> tuple[int, int] | None:
    """Return the class counts of file and network, if only a linear layer's outputs differ."""
    layers = {name.rpartition(".")[0] for name in wrong}
    if len(layers) != 1 or not isinstance(module.get_submodule(next(iter(layers))), nn.Linear):
        return None
    if any(fit.tensors[name].shape[1:] != target[name].shape[1:] for name in wrong):
        return None
    return fit.tensors[wrong[0]].shape[0], target[wrong[0]].shape[0]


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"
