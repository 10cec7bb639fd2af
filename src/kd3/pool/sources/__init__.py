"""Where crawled files come from: folders, tar shards, zips. A new kind is one file and one entry here.

The rule for names: every regular file is tried, whatever its extension says, since crawls lie
about it. Skipped without a look are sidecars (see SIDECAR_SUFFIXES) and hidden files. Archives in a
folder are opened in their place of the sorted order; archives inside archives are not.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kd3.errors import KD3Error
from kd3.pool.record import SIDECAR, InFile, Record, Unusable, printable
from kd3.pool.sources.folder import walk
from kd3.pool.sources.names import archive_kind, is_sidecar
from kd3.pool.sources.tar import tar_members
from kd3.pool.sources.zip import zip_members

ARCHIVES: dict[str, Callable[[str, str, str], Iterator[Record]]] = {
    "tar": tar_members,
    "zip": zip_members,
}
BRACES = re.compile(r"\{([^{}]*)\}")


def expand(sources: Sequence[str]) -> list[str]:
    """Return the paths that sources with braces and globs stand for, in order.

    >>> expand_braces("a{00..02}.tar")
    ['a00.tar', 'a01.tar', 'a02.tar']

    Raises:
        KD3Error: a path does not exist, or a glob matches nothing.
    """
    paths = []
    for source in sources:
        for path in [source] if Path(source).exists() else expand_braces(source):
            if Path(path).exists():
                paths.append(path)
                continue
            matches = sorted(glob.glob(path, recursive=True)) if any(c in path for c in "*?[") else []
            if not matches:
                raise KD3Error(f"source {path} does not exist" if "*" not in path else f"nothing matches {path}")
            paths += matches
    return paths


def expand_braces(pattern: str) -> list[str]:
    """Return `a{1..3}` as a1, a2, a3 (leading zeros kept) and `{x,y}` as x, y; several multiply."""
    match = BRACES.search(pattern)
    if not match:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if numbers:
        first, last = numbers[1], numbers[2]
        width = len(first) if first.startswith("0") else 1
        if int(last) < int(first) or int(last) - int(first) > 10_000_000:
            raise KD3Error(f"the range {{{match[1]}}} in {pattern} is empty or too long")
        parts = [f"{n:0{width}d}" for n in range(int(first), int(last) + 1)]
    else:
        parts = match[1].split(",")
    return [pattern[: match.start()] + part + rest for part in parts for rest in expand_braces(pattern[match.end() :])]


def records(sources: Sequence[str]) -> Iterator[Record]:
    """Yield every file of the sources in a stable order, sidecars among them, in constant memory.

    Raises:
        KD3Error: a source does not exist.
    """
    for path in expand(sources):
        kind = archive_kind(path)
        if Path(path).is_dir():
            yield from _in_folder(path)
        elif kind:
            yield from ARCHIVES[kind](path, path, "")
        else:
            yield Record(path, printable(Path(path).name), InFile(path))


def list_records(sources: Sequence[str]) -> Iterator[Record]:
    """Yield every file of the sources that may be an image: `records` without the sidecars."""
    for record in records(sources):
        if not (isinstance(record.location, Unusable) and record.location.reason == SIDECAR):
            yield record


def _in_folder(folder: str) -> Iterator[Record]:
    for path, key, regular in walk(folder):
        kind = archive_kind(path)
        if not regular:
            yield Record(folder, key, Unusable("not a regular file"))
        elif is_sidecar(key):
            yield Record(folder, key, Unusable(SIDECAR))
        elif kind:
            yield from ARCHIVES[kind](path, folder, key + "/")
        else:
            yield Record(folder, key, InFile(path))
