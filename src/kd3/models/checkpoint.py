"""Load weights from checkpoints as people have them, and say in one sentence what was done."""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kd3.errors import KD3Error

# Where training scripts put the state dict; the first that is there is taken. An average of the weights
# comes last: which of the two a user means is theirs to say, by saving it alone.
_TRAINED = ("state_dict", "model_state_dict", "model", "net")
_AVERAGED = ("ema", "state_dict_ema", "model_ema")
_WRAPPERS = 2  # how many dictionaries may lie around the state dict
# What DataParallel, torch.compile and people's own wrappers put before every name.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.", "network.", "encoder.")
_PREFIXES_DEEP = 4  # how many of them may be stacked
# Names that the same part has in different families.
_SYNONYMS = (("fc", "linear", "classifier"), ("downsample", "shortcut"))
# Counters, not weights: torch before 0.4.1 wrote none, and weight averaging adds one.
_BATCH_COUNTER = "num_batches_tracked"
_AVERAGE_COUNTER = "n_averaged"
_SHOWN = 3  # names in a message


@dataclass(frozen=True)
class _Candidate:
    """The file's tensors under one choice of names."""

    tensors: Mapping[str, Tensor]
    changes: tuple[str, ...] = ()  # what was done to the names, in words
    missing: list[str] = field(default_factory=list)  # of the network's names
    left_over: list[str] = field(default_factory=list)  # of the file's names

    @property
    def misfits(self) -> int:
        return len(self.missing) + len(self.left_over)


def load_weights(module: nn.Module, path: Path, *, where: str, trusted: bool = False) -> str:
    """Load a checkpoint into a network, all of it or nothing, and return a sentence on what was loaded.

    The file holds a state dict (`.safetensors`, or anything that `torch.load` reads), bare or under
    `state_dict`, `model_state_dict`, `model`, `net` or an average's name. Prefixes such as `module.` are
    removed and `fc` / `linear` / `classifier`, `downsample` / `shortcut` exchanged where that alone
    makes the names fit. Nothing in the file is executed, unless it is trusted; it may be a whole pickled network then.

    Args:
        module: the network; on an error it is left as it was.
        path: the checkpoint.
        where: what asks for it, to begin messages with ("teacher.yaml").
        trusted: let a pickle run what code it holds.

    Raises:
        KD3Error: the file cannot be read, does not fit the network, or holds values that are not finite.
    """
    tensors, notes = _find_state_dict(_read(path, where, trusted), f"{where}: {path}")
    target = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    fit = _best_fit(tensors, target)
    _check_fit(fit, module, target, f"{where}: {path}")
    for name, tensor in fit.tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise KD3Error(f"{where}: {path} holds values that are not finite, first in {name!r}")
    try:
        # Not strict, as counters may be missing; the names were compared above.
        module.load_state_dict(dict(fit.tensors), strict=False)
    except RuntimeError as error:  # a module with rules of its own for loading
        raise KD3Error(f"{where}: {path} cannot be loaded: {error}") from error
    details = "; ".join((*notes, *fit.changes))
    return f"loaded {len(fit.tensors)} tensors from {path.name}" + (f" ({details})" if details else "")


def weights_hash(module: nn.Module) -> str:
    """Return a SHA-256 of a network's weights, in hex: the key of what was computed with them.

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


def _read(path: Path, where: str, trusted: bool) -> Any:
    if not path.exists():
        raise KD3Error(f"{where}: there is no weights file {path}")
    if path.is_dir():
        raise KD3Error(f"{where}: {path} is a folder; the weights are a .pt, .pth, .th or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path, device="cpu")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch guesses at the file; our sentence tells
            return torch.load(path, map_location="cpu", weights_only=not trusted)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+\w)", str(error))
        if found is None:
            raise _unreadable(path, where, error) from error
        what = "a whole pickled network" if found[1].startswith("torch.nn.") else "Python objects beyond tensors"
        raise KD3Error(
            f"{where}: {path} holds {what} ({found[1]}), which would run code when loaded; where it was made "
            "and is trusted, save the weights alone: torch.save(model.state_dict(), 'weights.pt'), or say trusted: "
            "true in the teacher's description"
        ) from error
    except Exception as error:  # a damaged file makes torch.load raise nearly anything
        if "TorchScript" in str(error):
            raise KD3Error(
                f"{where}: {path} is a TorchScript archive, not a checkpoint; save its weights alone: "
                "torch.save(torch.jit.load(path).state_dict(), 'weights.pt')"
            ) from error
        raise _unreadable(path, where, error) from error


def _unreadable(path: Path, where: str, error: Exception) -> KD3Error:
    # What torch says of a refused pickle is advice for its own callers.
    reason = "" if isinstance(error, pickle.UnpicklingError) else str(error).partition("\n")[0].partition(". ")[0]
    details = f" ({type(error).__name__}: {reason})" if reason else ""
    return KD3Error(
        f"{where}: {path} ({path.stat().st_size:,} bytes) is not a checkpoint that can be read: "
        f"cut short, or another kind of file{details}"
    )


def _find_state_dict(content: Any, place: str) -> tuple[Mapping[str, Tensor], list[str]]:
    """Return the tensors by name, and notes on where they were."""
    notes: list[str] = []
    for _ in range(_WRAPPERS + 1):
        if isinstance(content, nn.Module):
            notes.append(f"of a pickled {type(content).__name__}")
            content = content.state_dict()
        if not isinstance(content, Mapping):
            break
        wrappers = [
            k for k in (*_TRAINED, *_AVERAGED) if isinstance(content.get(k), (Mapping, nn.Module)) and content[k]
        ]
        if not wrappers:
            tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
            if tensors:
                return tensors, notes
            break
        notes.append(f"under {wrappers[0]!r}")
        if wrappers[0] in _TRAINED and (averages := [w for w in wrappers if w in _AVERAGED]):
            notes.append(f"its average under {averages[0]!r} left aside")
        content = content[wrappers[0]]
    if isinstance(content, Mapping):
        what = f"a dictionary of {', '.join(map(repr, list(content)[:_SHOWN]))}" if content else "an empty dictionary"
    else:
        what = f"a {type(content).__name__}"
    raise KD3Error(
        f"{place} holds {what}, no state dict; one is expected bare or under {', '.join(_TRAINED + _AVERAGED)}"
    )


def _best_fit(tensors: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> _Candidate:
    """Return the file's tensors under the names that fit, else under those that fit best."""
    best: _Candidate | None = None
    for names, changes in _renamings(tensors, target):
        renamed = {names[old]: tensor for old, tensor in tensors.items()}
        if _AVERAGE_COUNTER not in target:
            renamed.pop(_AVERAGE_COUNTER, None)
        missing = [k for k in target if k not in renamed and not k.endswith(_BATCH_COUNTER)]
        left_over = [k for k in renamed if k not in target]
        candidate = _Candidate(renamed, changes, missing, left_over)
        if candidate.misfits == 0:
            return candidate
        if best is None or candidate.misfits < best.misfits:
            best = candidate
    assert best is not None  # the file's own names are the first candidate
    return best


def _renamings(
    tensors: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> Iterator[tuple[dict[str, str], tuple[str, ...]]]:
    """Yield ways to name the file's tensors (old name: new name) and what was done, the plainest first."""
    levels: list[tuple[dict[str, str], tuple[str, ...]]] = [({name: name for name in tensors}, ())]
    for _ in range(_PREFIXES_DEEP + 1):
        deeper = []
        for names, changes in levels:
            yield names, changes
            translated, words = _translated(names, target)
            if words:
                yield translated, (*changes, *words)
            for prefix in _PREFIXES:
                shorter = {old: new.removeprefix(prefix) for old, new in names.items()}
                # Two tensors must not come to the same name.
                if shorter != names and len(set(shorter.values())) == len(names):
                    deeper.append((shorter, (*changes, f"prefix {prefix!r} removed")))
        levels = deeper


def _translated(names: dict[str, str], target: Mapping[str, Tensor]) -> tuple[dict[str, str], list[str]]:
    """Return the names with the network's words for the same parts, and what was exchanged.

    Only where the file has one word of a group, the network another one, and neither has both.
    """
    words = []
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


def _check_fit(fit: _Candidate, module: nn.Module, target: Mapping[str, Tensor], place: str) -> None:
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
        parts.append(f"{len(fit.missing)} missing ({_some(fit.missing)})")
    if fit.left_over:
        parts.append(f"{len(fit.left_over)} left over ({_some(fit.left_over)})")
    if wrong:
        shapes = [f"{k} is {_shape(fit.tensors[k])} in the file, {_shape(target[k])} in the network" for k in wrong]
        parts.append(f"{len(wrong)} of another shape ({_some(shapes)})")
    sizes = f"{len(fit.tensors)} tensors in the file, {len(target)} in the network"
    raise KD3Error(f"{place} does not fit the architecture ({sizes}): {'; '.join(parts)}")


def _class_counts(
    fit: _Candidate, module: nn.Module, target: Mapping[str, Tensor], wrong: list[str]
) -> tuple[int, int] | None:
    """Return the classes in the file and in the network, if nothing but a linear layer's outputs differs."""
    layers = {name.rpartition(".")[0] for name in wrong}
    if len(layers) != 1 or not isinstance(module.get_submodule(next(iter(layers))), nn.Linear):
        return None
    if any(fit.tensors[name].shape[1:] != target[name].shape[1:] for name in wrong):
        return None
    return fit.tensors[wrong[0]].shape[0], target[wrong[0]].shape[0]


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"


def _some(items: list[str]) -> str:
    return ", ".join(items[:_SHOWN]) + (", ..." if len(items) > _SHOWN else "")
