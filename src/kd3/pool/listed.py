"""Lists of a pool's images, one per line: JSON for any name, or plain names."""

from __future__ import annotations

import json
from pathlib import Path

from kd3.errors import KD3Error

_ESCAPES = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})  # of lists that kd3 wrote as plain text


def line_of(source: str, key: str) -> str:
    """Return the line of an image, with its end: JSON of source and key, in ASCII.

    >>> line_of("crawl", "a\\tb.png")
    '["crawl", "a\\\\tb.png"]\\n'
    """
    return json.dumps([source, key]) + "\n"


class ListedImages:
    """The images that a file names.

    A line is a JSON list of source and key, or a key, or a source, a tab and a key. In the last form tabs and breaks
    in a name may stand as \\t, \\n and \\r.

    Raises:
        KD3Error: the file cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            text = Path(path).read_bytes().decode("utf-8-sig")
        except (OSError, ValueError) as problem:
            raise KD3Error(f"the list {path} cannot be read: {problem}") from None
        # Not `splitlines`, which knows ten more ends of lines, all of which a name may hold.
        self._lines = {line for line in text.replace("\r\n", "\n").split("\n") if line.strip()}
        self._pairs = {pair for line in self._lines if (pair := _pair(line)) is not None}

    def holds(self, source: str, key: str) -> bool:
        """Return whether an image is listed."""
        if (source, key) in self._pairs or key in self._lines or f"{source}\t{key}" in self._lines:
            return True
        return f"{source.translate(_ESCAPES)}\t{key.translate(_ESCAPES)}" in self._lines


def _pair(line: str) -> tuple[str, str] | None:
    if not line.startswith("["):
        return None
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if isinstance(values, list) and len(values) == 2 and all(isinstance(value, str) for value in values):
        return values[0], values[1]
    return None
