"""Current places of a run's teacher, student code, pool and labelled images, from any working directory.

A run stores each path as given (config.yaml, summary.json) and relative to its own folder (origin.json). So paths are
found from another working directory, and after moving the run together with its inputs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd3.errors import KD3Error
from kd3.runs.folder import RunFolder

PLACES = ("teacher", "student", "pool", "eval_data", "deployment", "keep_out")
KEY = "places"


def from_run(folder: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the paths among a run's settings that exist, relative to its folder; for origin.json.

    If a setting names several, they are keyed by the given path.
    """
    found: dict[str, Any] = {}
    for name in PLACES:
        given = values.get(name)
        if isinstance(given, list):
            several = {one: place for one in given if (place := _relative(folder, one)) is not None}
            found |= {name: several} if several else {}
        elif isinstance(given, str) and (place := _relative(folder, given)) is not None:
            found[name] = place
    return found


def _relative(folder: Path, given: str) -> str | None:
    path = _file_of(given)
    try:
        return Path(os.path.relpath(path, folder)).as_posix() + given[len(str(path)) :] if path.exists() else None
    except ValueError:  # on another drive
        return None


def find(folder: Path, name: str, given: str) -> str:
    """Return the present location of one of a run's paths.

    The search tries the given path, if absolute; then the run's folder; then the working directory. A value that was no
    path when the run began (a network of a library, a live object) is returned unchanged.

    Raises:
        KD3Error: it is at none of these places, which are named.
    """
    kept = _kept(folder).get(name)
    relative: str | None = kept.get(given) if isinstance(kept, dict) else kept
    if relative is None:
        return given
    from_folder = os.path.normpath(folder / relative)
    places = dict.fromkeys([given, from_folder] if _file_of(given).is_absolute() else [from_folder, given])
    for place in places:
        if _file_of(place).exists():
            return place
    where = list(dict.fromkeys(str(_file_of(place).absolute()) for place in places))
    told = f"not at {where[0]}" if len(where) == 1 else f"neither at {' nor at '.join(where)}"
    flag = f"--{name.replace('_', '-')}"
    raise KD3Error(f"the {name} of the run {folder} is {told}; say where it is with {flag}, or bring it back")


def found(folder: Path, values: Mapping[str, Any], *, but: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's settings with present paths; those named in `but` are not searched.

    Raises:
        KD3Error: one is missing.
    """
    changed = dict(values)
    for name in PLACES:
        given = values.get(name)
        if given is None or name in but:
            continue
        several = isinstance(given, list)
        changed[name] = [find(folder, name, str(one)) for one in given] if several else find(folder, name, str(given))
    return changed


def _kept(folder: Path) -> dict[str, Any]:
    try:
        kept = json.loads(RunFolder(folder).origin.read_text(encoding="utf-8")).get(KEY)
    except (OSError, ValueError, AttributeError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _file_of(given: str) -> Path:
    """Return the path in `net.py:build` or of a plain path."""
    file, colon, _ = given.rpartition(":")
    return Path(file if colon and file.endswith(".py") else given)
