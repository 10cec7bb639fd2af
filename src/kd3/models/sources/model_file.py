"""Common part of networks in files of their own: they are trained, and stay unchanged."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from kd3.errors import KD3Error
from kd3.models.sources.library import first_line

CHECKPOINT = "checkpoint"
SPOKEN = {CHECKPOINT: "a checkpoint", "torchscript": "TorchScript", "torch-export": "an exported program"}


def no_student(kind: str, name: str) -> KD3Error:
    """Return the error for a file used as a student."""
    return KD3Error(f"{kind}:{name} is a finished network and cannot be a student; it can be a teacher")


def read(
    kind: str, name: str, arch_args: Mapping[str, Any], folder: Path, load: Callable[[str], nn.Module]
) -> nn.Module:
    """Return the network in a file.

    Raises:
        KD3Error: there is no such file, or it is of another kind.
    """
    path = _path(name, folder)
    if arch_args:
        raise KD3Error(f"{kind}:{name} takes no arch_args: the file holds a finished network")
    if not path.is_file():
        raise KD3Error(f"{kind}:{name}: there is no file {path}")
    found = _what_it_is(path)
    if found is not None and found != kind:
        hint = "name it under weights, with the arch of its network" if found == CHECKPOINT else f"write {found}:{name}"
        raise KD3Error(f"{path} cannot be read as {kind}: it is {SPOKEN[found]}; {hint}")
    try:
        return load(str(path))
    except Exception as problem:  # from zip, pickle or torch's own readers
        said = first_line(problem, at_most=200)
        raise KD3Error(f"{path} cannot be read as {kind}: {type(problem).__name__}: {said}") from problem


def _what_it_is(path: Path) -> str | None:
    """Return the kind of a file by its archive's contents; None for unknown kinds."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] or name for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError):
        return None
    if names & {"archive_format", "serialized_exported_program.json"}:
        return "torch-export"
    if "constants.pkl" in names:
        return "torchscript"
    return CHECKPOINT if "data.pkl" in names else None


def file_hash(name: str, folder: Path) -> str:
    """Return the SHA-256 of a network's file, in hex."""
    digest = hashlib.sha256()
    with _path(name, folder).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _path(name: str, folder: Path) -> Path:
    return (folder / Path(name).expanduser()).resolve()
