"""What networks in files of their own have in common: they are trained, and stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from kd3.errors import KD3Error


def no_student(kind: str, name: str) -> KD3Error:
    """Return the refusal of a file as a student."""
    return KD3Error(f"{kind}:{name} is a finished network and cannot be a student; it can be a teacher")


def read(
    kind: str, name: str, arch_args: Mapping[str, Any], folder: Path, load: Callable[[str], nn.Module]
) -> nn.Module:
    """Return the network in a file.

    Raises:
        KD3Error: there is no such file, or it is of another kind.
    """
    path = (folder / Path(name).expanduser()).resolve()
    if arch_args:
        raise KD3Error(f"{kind}:{name} takes no arch_args: the file holds a finished network")
    if not path.is_file():
        raise KD3Error(f"{kind}:{name}: there is no file {path}")
    try:
        return load(str(path))
    except Exception as problem:  # of zip, of pickle, of torch's own readers
        first = str(problem).strip().splitlines()[0][:200] if str(problem).strip() else ""
        raise KD3Error(f"{path} cannot be read as {kind}: {type(problem).__name__}: {first}") from problem
