"""Where crawled files come from: folders, tar shards, zips. A new kind is one file and one entry here.

The rule for names: every regular file is tried, whatever its extension says, since crawls lie
about it. Skipped without a look are sidecars and hidden files (`names.NAME_RULE`). Archives in a
folder are opened in their place of the sorted order; archives inside archives are not.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from kd3.errors import KD3Error
from kd3.pool.reasons import SIDECAR
from kd3.pool.record import InFile, Record, Unusable, printable
from kd3.pool.sources.folder import is_regular, walk
from kd3.pool.sources.names import archive_kind, is_sidecar
from kd3.pool.sources.tar import tar_count, tar_members
from kd3.pool.sources.zip import zip_count, zip_members


class Archive(NamedTuple):
    """An archive among the sources, or in a folder that is one: its members' keys begin with `prefix`."""

    kind: str
    path: str
    source: str
    prefix: str


class Reader(NamedTuple):
    """How a kind of archive is read."""

    members: Callable[[str, str, str], Iterator[Record]]  # (path, source, prefix)
    count: Callable[[str], int]


ARCHIVES = {
    "tar": Reader(tar_members, tar_count),
    "zip": Reader(zip_members, zip_count),
}
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE_LIMIT = 1_000_000


def expand(sources: Sequence[str]) -> list[str]:
    """Return the paths that sources with braces and globs stand for, in order.

    >>> expand_braces("a{00..02}.tar")
    ['a00.tar', 'a01.tar', 'a02.tar']

    Raises:
        KD3Error: a path does not exist, or a glob matches nothing.
    """
    paths = []
    for source in sources:
        # A name that exists is meant as it is, whatever signs it holds.
        for path in [source] if os.path.exists(source) else expand_braces(source):
            is_glob = glob.has_magic(path)
            matches = sorted(glob.glob(path, recursive=True)) if is_glob and not os.path.exists(path) else [path]
            if not matches:
                raise KD3Error(f"no file matches {path}")
            if not os.path.exists(matches[0]):
                raise KD3Error(f"source {printable(path)} does not exist")
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
        if int(last) < int(first) or int(last) - int(first) >= RANGE_LIMIT:
            raise KD3Error(f"the range {{{match[1]}}} in {pattern} is empty or has more than {RANGE_LIMIT:,} numbers")
        parts = [f"{n:0{width}d}" for n in range(int(first), int(last) + 1)]
    else:
        parts = match[1].split(",")
    return [pattern[: match.start()] + part + rest for part in parts for rest in expand_braces(pattern[match.end() :])]


def records(sources: Sequence[str]) -> Iterator[Record]:
    """Yield every file of the sources in a stable order, sidecars among them, in constant memory.

    Raises:
        KD3Error: a source does not exist.
    """
    for found in _files(sources):
        if isinstance(found, Archive):
            yield from ARCHIVES[found.kind].members(found.path, found.source, found.prefix)
        else:
            yield found


def list_records(sources: Sequence[str]) -> Iterator[Record]:
    """Yield every file of the sources that may be an image: `records` without the sidecars."""
    for record in records(sources):
        if not (isinstance(record.location, Unusable) and record.location.reason == SIDECAR):
            yield record


def counts(sources: Sequence[str]) -> Iterator[int | None]:
    """Yield about how many records each file or archive has, quicker than listing them.

    None stands for one that would have to be unpacked to know.
    """
    for found in _files(sources):
        if isinstance(found, Archive):
            yield None if is_compressed(found) else ARCHIVES[found.kind].count(found.path)
        else:
            yield 1


def is_compressed(archive: Archive) -> bool:
    """Say whether an archive can only be read from its start."""
    return archive.kind == "tar" and not archive.path.lower().endswith(".tar")


def _files(sources: Sequence[str]) -> Iterator[Record | Archive]:
    for path in expand(sources):
        kind = archive_kind(path)
        if os.path.isdir(path):
            yield from _in_folder(path)
        elif not is_regular(path):
            yield Record(printable(path), _name(path), Unusable("not a regular file"))
        elif kind:
            yield Archive(kind, path, printable(path), "")
        else:
            yield Record(printable(path), _name(path), InFile(path))


def _in_folder(folder: str) -> Iterator[Record | Archive]:
    source = printable(folder)
    for path, key, what in walk(folder):
        kind = archive_kind(path)
        if what == "other":
            yield Record(source, key, Unusable("not a regular file"))
        elif what == "unreadable":
            yield Record(source, key, Unusable("unreadable", "the folder cannot be listed"))
        elif is_sidecar(key):
            yield Record(source, key, Unusable(SIDECAR))
        elif kind:
            yield Archive(kind, path, source, key + "/")
        else:
            yield Record(source, key, InFile(path))


def _name(path: str) -> str:
    return printable(os.path.basename(path))
