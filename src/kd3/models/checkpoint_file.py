"""A checkpoint's file read, and not executed, unless the user trusts it; a user's Python file imported."""

from __future__ import annotations

import importlib
import pickle
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from kd3.runtime.errors import KD3Error
from kd3.runtime.files import FIRST, stand_in
from kd3.runtime.text import first_of

# Attribute of modules beside a user's file: the folder of their import.
_FOLDER_MARK = "__kd3_folder__"
_LEVELS_UP = 4  # searched for a package


@contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    """Let `import` find the modules in a folder."""
    for name, module in list(sys.modules.items()):
        # Otherwise an earlier file's neighbour of the same name, from another folder, would be reused.
        mark = getattr(module, "__dict__", {}).get(_FOLDER_MARK, folder)
        if mark != folder and _lies_in(folder, name):
            del sys.modules[name]
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with suppress(ValueError):  # the file may have tidied up after itself
            sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if _lies_in(folder, name):
                setattr(sys.modules[name], _FOLDER_MARK, folder)


def where_to_find(missing: str, folder: Path) -> str:
    """Return in words the setting that makes a module importable from files in a folder."""
    near = next((place for place in folder.parents[:_LEVELS_UP] if _lies_in(place, missing)), None)
    if near is not None:
        return f"it lies in {near}: set PYTHONPATH={near}"
    return f"put it beside the file, or set PYTHONPATH to the folder that holds {missing.partition('.')[0]!r}"


def _lies_in(folder: Path, module_name: str) -> bool:
    top = module_name.partition(".")[0]
    return (folder / f"{top}.py").is_file() or (folder / top).is_dir()


# Usual keys of the state dict; the first one found is taken. Averaged weights come last: users select them with
# `weights_key`.
_TRAINED = ("state_dict", "model_state_dict", "model", "net", "module")
_AVERAGED = ("ema", "state_dict_ema", "model_ema")
_WRAPPERS = 2  # nested dictionaries around the state dict, at most
_MOST_STRANGERS = 100  # classes beside the weights
_SHOWN = 3  # names in a message


def read_state_dict(
    path: Path, *, where: str, trusted: bool = False, key: str | None = None
) -> tuple[Mapping[str, Tensor], list[str]]:
    """Return a checkpoint's tensors by name, and notes on their place in it.

    Objects of classes that are not PyTorch's own (numbers of NumPy, paths, settings) are not read; empty objects
    replace them.

    Args:
        path: the file.
        where: the origin of the request, at the start of messages.
        trusted: let a pickle run its code.
        key: name of the state dict; None: found automatically.

    Raises:
        KD3Error: the file cannot be read, or holds no state dict.
    """
    content, strangers = _read(path, where, trusted)
    try:
        tensors, notes = _find(content, key, f"{where}: {path}")
    except KD3Error as problem:
        raise (_needs_code(path, where, strangers[0]) if strangers else problem) from None
    if strangers:
        notes.append(f"left unread: {first_of(strangers, _SHOWN)}")
    return tensors, notes


def _read(path: Path, where: str, trusted: bool) -> tuple[Any, list[str]]:
    """Return the file's contents, and the classes of unread objects."""
    if not path.exists():
        raise KD3Error(f"{where}: there is no weights file {path}")
    if path.is_dir():
        raise KD3Error(f"{where}: {path} is a folder; the weights are a .pt, .pth, .th or .safetensors file")
    strangers: list[str] = []
    try:
        if path.suffix == ".safetensors":
            return load_file(path, device="cpu"), strangers
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch guesses; our own sentence is exact
            if trusted:
                with importing_from(path.resolve().parent):  # may hold the code of a pickled network
                    return torch.load(path, map_location="cpu", weights_only=False), strangers
            return _without_code(path, strangers), strangers
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+\w)", str(error))
        name = strangers[0] if strangers else found[1] if found else None
        if name is None:
            raise _unreadable(path, where, error) from error
        raise _needs_code(path, where, name) from error
    except ModuleNotFoundError as error:
        raise KD3Error(
            f"{where}: {path} holds a pickled network whose module {error.name!r} is not found; "
            f"{where_to_find(error.name or '', path.resolve().parent)}"
        ) from error
    except AttributeError as error:  # a class defined in a script's __main__
        raise KD3Error(
            f"{where}: {path} holds a pickled object whose class is not where it was ({error}); where it was made, "
            f"save the weights alone: torch.save(model.state_dict(), 'weights.pt')"
        ) from error
    except Exception as error:  # torch.load raises nearly anything on damaged files
        if "TorchScript" in str(error):
            raise KD3Error(
                f"{where}: {path} is a TorchScript archive, not a checkpoint; save its weights alone: "
                "torch.save(torch.jit.load(path).state_dict(), 'weights.pt')"
            ) from error
        raise _unreadable(path, where, error) from error


class _Unread:
    """Empty replacement for an object of an unknown class; it runs nothing."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def _without_code(path: Path, strangers: list[str]) -> Any:
    """Load a pickle with empty replacements for all classes that PyTorch does not allow, and record these.

    Raises:
        pickle.UnpicklingError: it asks for more than objects of other classes.
    """
    while True:
        stand_ins: list[Any] = []
        for stranger in strangers:
            module, _, name = stranger.rpartition(".")
            # PyTorch looks for the class that a pickle names by module and name.
            stand_ins.append(type(name, (_Unread,), {"__module__": module or "builtins"}))
        try:
            with torch.serialization.safe_globals(stand_ins):
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            found = re.search(r"Unsupported global: GLOBAL ([\w.]+\w)", str(error))
            if found is None or found[1] in strangers or len(strangers) == _MOST_STRANGERS:
                raise
            strangers.append(found[1])


def _needs_code(path: Path, where: str, name: str) -> KD3Error:
    what = "a whole pickled network" if name.startswith("torch.nn.") else "Python objects beyond tensors"
    return KD3Error(
        f"{where}: {path} holds {what} ({name}), which would run code when loaded; where it was made "
        "and is trusted, save the weights alone: torch.save(model.state_dict(), 'weights.pt'), or say trusted: "
        "true in the teacher's description"
    )


def _unreadable(path: Path, where: str, error: Exception) -> KD3Error:
    with path.open("rb") as file:
        if (other := stand_in(file.read(FIRST))) is not None:
            return KD3Error(f"{where}: {path} is {other}")
    # torch's message about a refused pickle is advice for its own callers.
    reason = "" if isinstance(error, pickle.UnpicklingError) else str(error).partition("\n")[0].partition(". ")[0]
    details = f" ({type(error).__name__}: {reason})" if reason else ""
    return KD3Error(
        f"{where}: {path} ({path.stat().st_size:,} bytes) is not a checkpoint that can be read: "
        f"cut short, or another kind of file{details}"
    )


def _find(content: Any, key: str | None, place: str) -> tuple[Mapping[str, Tensor], list[str]]:
    """Return the tensors by name, and notes on where they were."""
    notes: list[str] = []
    if key is not None:
        if not isinstance(content, Mapping) or not isinstance(content.get(key), (Mapping, nn.Module)):
            found = _named(content) if isinstance(content, Mapping) else f"a {type(content).__name__}"
            raise KD3Error(f"{place} holds nothing under {key!r} (weights_key), but {found}")
        content = content[key]
        notes.append(f"under {key!r}")
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
            notes.append(f"its average under {averages[0]!r} left aside; weights_key: {averages[0]} takes it")
        content = content[wrappers[0]]
    what = _named(content) if isinstance(content, Mapping) else f"a {type(content).__name__}"
    raise KD3Error(
        f"{place} holds {what}, no state dict; the file may be a state dict, or hold one under "
        f"{', '.join(_TRAINED + _AVERAGED)} or the name that weights_key gives"
    )


def _named(content: Mapping[Any, Any]) -> str:
    return f"a dictionary of {', '.join(map(repr, list(content)[:_SHOWN]))}" if content else "an empty dictionary"
