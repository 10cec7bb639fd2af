"""JSON files that record their kind and version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kd3.errors import KD3Error

LARGEST = 64 << 20  # bytes; a student of a million classes, or a pool of a million sources, has less


def read_versioned(path: Path, *, format_name: str, version: int) -> dict[str, Any]:
    """Return the mapping in a JSON file whose `format` and `version` are ours.

    Raises:
        KD3Error: it cannot be read, is of another format, or of a version newer than `version`.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")  # reading a pipe or a device would never end
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has more than {LARGEST >> 20} MiB")
        values = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise KD3Error(f"{path} cannot be read: it is nested too deep") from None
    except (OSError, ValueError) as problem:
        raise KD3Error(f"{path} cannot be read: {problem}") from None
    if not isinstance(values, dict) or values.get("format") != format_name:
        raise KD3Error(f"{path} is not of the format {format_name}")
    found = values.get("version")
    if not isinstance(found, int) or isinstance(found, bool):
        raise KD3Error(f"{path} is damaged: its version is {found!r}")
    if found > version:
        raise KD3Error(f"{path} has format version {found}; this kd3 reads up to {version}: upgrade kd3")
    return values
