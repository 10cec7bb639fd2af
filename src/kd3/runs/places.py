"""Where a run's teacher, student code, pool and labelled images are, from wherever one asks.

A run keeps each path as it was given (config.yaml, summary.json) and relative to its own folder (origin.json): so they
are found from another working directory, and where the run was moved together with what it was made from.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd3.errors import KD3Error
from kd3.runs.folder import RunFolder

PLACES = ("teacher", "student", "pool", "eval_data", "deployment")
KEY = "places"


def from_run(folder: Path, values: Mapping[str, Any]) -> dict[str, str]:
    """Return the paths among a run's settings that exist, relative to its folder; for origin.json."""
    found = {}
    for name in PLACES:
        given = values.get(name)
        if isinstance(given, str) and (path := _file_of(given)).exists():
            try:
                found[name] = Path(os.path.relpath(path, folder)).as_posix() + given[len(str(_file_of(given))) :]
            except ValueError:  # on another drive
                continue
    return found


def find(folder: Path, name: str, given: str) -> str:
    """Return where one of a run's paths is now.

    Looked for as it was given, if that is absolute; then from the run's folder; then from the working directory. What
    was no path when the run began (a network of a library, a live object) is returned as it is.

    Raises:
        KD3Error: it is at none of these places, which are named.
    """
    relative = _kept(folder).get(name)
    if relative is None:
        return given
    from_folder = os.path.normpath(folder / relative)
    places = dict.fromkeys([given, from_folder] if _file_of(given).is_absolute() else [from_folder, given])
    for place in places:
        if _file_of(place).exists():
            return place
    told = " nor at ".join(str(_file_of(place).absolute()) for place in places)
    flag = f"--{name.replace('_', '-')}"
    raise KD3Error(
        f"the {name} of the run {folder} is neither at {told}; say where it is with {flag}, or bring it back"
    )


def found(folder: Path, values: Mapping[str, Any], *, but: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's settings with its paths where they are now; those named in `but` are not looked for.

    Raises:
        KD3Error: one is nowhere.
    """
    changed = {
        name: find(folder, name, str(values[name]))
        for name in PLACES
        if values.get(name) is not None and name not in but
    }
    return {**values, **changed}


def _kept(folder: Path) -> dict[str, str]:
    try:
        kept = json.loads(RunFolder(folder).origin.read_text(encoding="utf-8")).get(KEY)
    except (OSError, ValueError, AttributeError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _file_of(given: str) -> Path:
    """Return the path in `net.py:build` or of a plain path."""
    file, colon, _ = given.rpartition(":")
    return Path(file if colon and file.endswith(".py") else given)
