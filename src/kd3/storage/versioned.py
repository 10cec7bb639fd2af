"""JSON files that say what they are and of which version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kd3.errors import KD3Error


def read_versioned(path: Path, *, format_name: str, version: int) -> dict[str, Any]:
    """Return the mapping in a JSON file whose `format` and `version` are ours.

    Raises:
        KD3Error: it cannot be read, is of another format, or of a version newer than `version`.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise KD3Error(f"{path} cannot be read: {problem}") from None
    if not isinstance(values, dict) or values.get("format") != format_name:
        raise KD3Error(f"{path} is not of the format {format_name}")
    found = values.get("version")
    if not isinstance(found, int):
        raise KD3Error(f"{path} is damaged: its version is {found!r}")
    if found > version:
        raise KD3Error(f"{path} has format version {found}; this kd3 reads up to {version}: upgrade kd3")
    return values
