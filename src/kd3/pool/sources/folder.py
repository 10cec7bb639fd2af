"""Files in a folder and the folders in it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Literal

from kd3.pool.record import printable

Kind = Literal["file", "other", "unreadable"]


def walk(folder: str) -> Iterator[tuple[str, str, Kind]]:
    """Yield (path, key, kind) of everything below that is no folder, names sorted folder by folder.

    Only the names of the folders on the way down are held, as plain strings. Linked files count as
    files; linked folders are not entered, so that a link to a parent cannot loop.
    """
    # A stack of its own: folders may be nested deeper than Python calls.
    levels = [_names(folder, "")]
    while levels:
        found = next(levels[-1], None)
        if found is None:
            levels.pop()
        elif isinstance(found, _Folder):
            levels.append(_names(found.path, found.prefix))
        else:
            yield found


class _Folder:
    def __init__(self, path: str, prefix: str) -> None:
        self.path, self.prefix = path, prefix


def _names(folder: str, prefix: str) -> Iterator[tuple[str, str, Kind] | _Folder]:
    names: list[str] = []
    folders: set[str] = set()
    others: set[str] = set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                names.append(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    folders.add(entry.name)
                elif not _is_file(entry):
                    others.add(entry.name)
    except OSError:
        yield folder, printable(prefix.rstrip("/")), "unreadable"
    names.sort()
    for name in names:
        path, key = os.path.join(folder, name), prefix + printable(name)
        if name in folders:
            yield _Folder(path, key + "/")
        else:
            yield path, key, "other" if name in others else "file"


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def is_regular(path: str) -> bool:
    """Say whether a path is (or links to) a file with contents of its own: no pipe, device or socket."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False
