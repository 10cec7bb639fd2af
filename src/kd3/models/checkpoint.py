"""Weights from common checkpoint layouts, matched by name to a network, with the steps reported in one sentence."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from kd3.models.checkpoint_file import read_state_dict
from kd3.models.zoo.resnets import PaddedShortcut
from kd3.runtime.errors import KD3Error
from kd3.runtime.text import first_of

SHOWN = 3  # names in a message

# Prefixes added by DataParallel, torch.compile and custom wrappers.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.", "network.", "encoder.")
_PREFIXES_DEEP = 4  # how many of them may be stacked
# Infixes added by wrappers of inner parts.
_INNER = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# Names of the same part in different families.
_SYNONYMS = (("fc", "linear", "classifier"), ("downsample", "shortcut"))
# weiaicunzai/pytorch-cifar100: each convolution in one sequence with its norm.
_SEQUENCES = (
    (re.compile(r"^conv1\.0\."), "conv1."),
    (re.compile(r"^conv1\.1\."), "bn1."),
    *((re.compile(rf"^conv{stage + 1}_x\."), f"layer{stage}.") for stage in range(1, 5)),
    *((re.compile(rf"\.residual_function\.{3 * n}\."), f".conv{n + 1}.") for n in range(3)),
    *((re.compile(rf"\.residual_function\.{3 * n + 1}\."), f".bn{n + 1}.") for n in range(3)),
)
# Counters, not weights: torch before 0.4.1 wrote none, and weight averaging adds one.
BATCH_COUNTER = "num_batches_tracked"
_AVERAGE_COUNTER = "n_averaged"
# Training state: weights of a loss, counters of metrics, the mean and std of an image layer.
_OF_TRAINING = re.compile(r"criterion|loss|metric|normali[sz]e|(^|_)(acc|accuracy|f1|auroc|confmat|mean|std)$")

_Names = dict[str, str]  # name in the file: name in the network


@dataclass(frozen=True)
class Fit:
    """The file's tensors under one choice of names."""

    tensors: Mapping[str, Tensor]
    changes: tuple[str, ...] = ()  # changes of the names, in words
    missing: list[str] = field(default_factory=list)  # of the network's names
    left_over: list[str] = field(default_factory=list)  # of the file's names

    @property
    def misfits(self) -> int:
        """Number of names without a partner."""
        return len(self.missing) + len(self.left_over)

    @property
    def distance(self) -> tuple[int, int]:
        """Order of fits under different prefixes: a small part of a deeper network has few names left over, too."""
        return len(self.missing), len(self.left_over)


def best_fit(tensors: Mapping[str, Tensor], target: Mapping[str, Tensor], *, prefix: str | None, place: str) -> Fit:
    """Return the file's tensors under the names that fit a network's state dict, or under the best-fitting ones.

    Args:
        tensors: of the file, by name.
        target: of the network.
        prefix: of the wanted names, if the file has others, too; None: found if it is unique.
        place: of the file, at the start of messages.

    Raises:
        KD3Error: several prefixes fit equally well, or no name has the requested one.
    """
    if prefix is not None:
        return _under(prefix, tensors, target, place)
    best = _best(tensors, target)
    if best.misfits == 0:
        return best
    fits = {}
    for found in _shared_prefixes(tensors, target):
        inside = {name.removeprefix(found): value for name, value in tensors.items() if name.startswith(found)}
        fit = _best(inside, target)
        if fit.misfits == 0:
            fits[found] = fit
        elif fit.distance < best.distance:
            best = fit
    if len(fits) > 1:
        raise KD3Error(
            f"{place} holds {len(fits)} networks that fit, under {' and '.join(map(repr, fits))}; say which is meant "
            f"(prefix: {next(iter(fits))})"
        )
    for found, fit in fits.items():
        outside = [name for name in tensors if not name.startswith(found)]
        return Fit(fit.tensors, (f"prefix {found!r} removed", *fit.changes, *_aside(outside)))
    return best


def _under(prefix: str, tensors: Mapping[str, Tensor], target: Mapping[str, Tensor], place: str) -> Fit:
    inside = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if not inside:
        beginnings = list(dict.fromkeys(name.partition(".")[0] + "." for name in tensors))
        known = first_of(beginnings, SHOWN)
        raise KD3Error(f"{place} has no names that begin with {prefix!r} (prefix); they begin with {known}")
    fit = _best(inside, target)
    outside = [name for name in tensors if not name.startswith(prefix)]
    return Fit(fit.tensors, (f"prefix {prefix!r} removed", *fit.changes, *_aside(outside)), fit.missing, fit.left_over)


def _best(tensors: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Fit:
    best: Fit | None = None
    for names, changes in _renamings(tensors, target):
        renamed = {names[old]: tensor for old, tensor in tensors.items()}
        if _AVERAGE_COUNTER not in target:
            renamed.pop(_AVERAGE_COUNTER, None)
        missing = [k for k in target if k not in renamed and not k.endswith(BATCH_COUNTER)]
        left_over = [k for k in renamed if k not in target]
        if not missing and left_over and all(_is_of_training(name, target) for name in left_over):
            changes = (*changes, *_aside(left_over))
            renamed, left_over = {k: v for k, v in renamed.items() if k in target}, []
        fit = Fit(renamed, changes, missing, left_over)
        if fit.misfits == 0:
            return fit
        if best is None or fit.misfits < best.misfits:
            best = fit
    assert best is not None  # the file's own names are the first
    return best


def _renamings(tensors: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> Iterator[tuple[_Names, tuple[str, ...]]]:
    """Yield candidate names for the file's tensors with their changes, the simplest first."""
    plain = {name: name for name in tensors}
    starts: list[tuple[_Names, tuple[str, ...]]] = [(plain, ())]
    ours = {part for name in target for part in name.split(".")}
    wrappers = [part for part in _INNER if part not in ours]
    inner = {name: ".".join(part for part in name.split(".") if part not in wrappers) for name in tensors}
    if inner != plain and len(set(inner.values())) == len(inner):
        starts.append((inner, ("wrappers of inner parts removed",)))
    for start in starts:
        levels = [start]
        for _ in range(_PREFIXES_DEEP + 1):
            deeper = []
            for names, changes in levels:
                yield names, changes
                translated, words = _translated(names, target)
                if words:
                    yield translated, (*changes, *words)
                for prefix in _PREFIXES:
                    shorter = {old: new.removeprefix(prefix) for old, new in names.items()}
                    # Two tensors must not get the same name.
                    if shorter != names and len(set(shorter.values())) == len(names):
                        deeper.append((shorter, (*changes, f"prefix {prefix!r} removed")))
            levels = deeper


def _translated(names: _Names, target: Mapping[str, Tensor]) -> tuple[_Names, list[str]]:
    """Return the names in the network's terms, and the exchanged terms.

    A term is exchanged only if the file has one of a group, the network another, and neither has both.
    """
    words = []
    if any(".residual_function." in new for new in names.values()):
        names = {old: _out_of_sequences(new) for old, new in names.items()}
        words.append("names of weiaicunzai/pytorch-cifar100 taken for the zoo's")
    for synonyms in _SYNONYMS:
        theirs = [w for w in synonyms if any(w in new.split(".") for new in names.values())]
        ours = [w for w in synonyms if any(w in name.split(".") for name in target)]
        if len(theirs) == len(ours) == 1 and theirs != ours:
            names = {
                old: ".".join(ours[0] if part == theirs[0] else part for part in new.split("."))
                for old, new in names.items()
            }
            words.append(f"{theirs[0]!r} taken for {ours[0]!r}")
    return names, words


def _out_of_sequences(name: str) -> str:
    for pattern, instead in _SEQUENCES:
        name = pattern.sub(instead, name)
    return name


def _shared_prefixes(tensors: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> list[str]:
    """Return the possible prefixes of all of a network's names, from the places of its first one."""
    first = next((name for name in target if not name.endswith(BATCH_COUNTER)), None)
    if first is None:
        return []
    return [name.removesuffix(first) for name in tensors if name.endswith(f".{first}")]


def _is_of_training(name: str, target: Mapping[str, Tensor]) -> bool:
    top = name.partition(".")[0]
    is_ours = any(own.partition(".")[0] == top for own in target)
    return not is_ours and _OF_TRAINING.search(top) is not None


def _aside(names: list[str]) -> tuple[str, ...]:
    return (f"left aside, as no part of the network: {first_of(names, SHOWN)}",) if names else ()


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
        parts.append(f"{len(fit.missing)} missing ({first_of(fit.missing, SHOWN)})")
    if fit.left_over:
        parts.append(f"{len(fit.left_over)} left over ({first_of(fit.left_over, SHOWN)})")
    if wrong:
        shapes = [f"{k} is {_shape(fit.tensors[k])} in the file, {_shape(target[k])} in the network" for k in wrong]
        parts.append(f"{len(wrong)} of another shape ({first_of(shapes, SHOWN)})")
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
