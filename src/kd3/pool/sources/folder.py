"""Files in a folder and the folders in it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from kd3.pool.record import printable


def walk(folder: str, prefix: str = "") -> Iterator[tuple[str, str, bool]]:
    """Yield (path, key, is a regular file) of everything below, names sorted folder by folder.

    One folder's names are held at a time. Linked files count as files; linked folders are not
    entered, so that a link to a parent cannot loop.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        yield folder, printable(prefix.rstrip("/")), False
        return
    for entry in found:
        key = prefix + printable(entry.name)
        if entry.is_dir(follow_symlinks=False):
            yield from walk(entry.path, key + "/")
        else:
            yield entry.path, key, _is_file(entry)


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False
