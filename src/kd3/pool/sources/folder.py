"""Files in a folder and its subfolders."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Literal

from kd3.pool.record import printable
from kd3.pool.sources.names import is_hidden

Kind = Literal["file", "other", "unreadable", "loop"]


def walk(folder: str) -> Iterator[tuple[str, str, Kind]]:
    """Yield (path, key, kind) of everything below that is no folder, names sorted folder by folder.

    Only the names of the folders on the way down are held, as plain strings. Linked files count as
    files. Linked folders are entered where that leads to something new: one that holds the link ("loop"), or that is
    read at its own place or by another link ("loop", too), is not.
    """
    # A stack of its own: folders may be nested deeper than Python calls.
    entered = {os.path.realpath(folder)}  # the folder, and where the links that were followed lead
    levels = [_names(folder, "")]
    while levels:
        found = next(levels[-1], None)
        if found is None:
            levels.pop()
        elif isinstance(found, _Folder):
            if found.is_link:
                target = os.path.realpath(found.path)
                if _is_known(target, entered) or _holds(target, os.path.realpath(os.path.dirname(found.path))):
                    yield found.path, found.prefix.rstrip("/"), "loop"
                    continue
                entered.add(target)
            levels.append(_names(found.path, found.prefix))
        else:
            yield found


class _Folder:
    def __init__(self, path: str, prefix: str, is_link: bool) -> None:
        self.path, self.prefix, self.is_link = path, prefix, is_link


def _holds(folder: str, path: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _is_known(target: str, entered: set[str]) -> bool:
    """Return whether a folder is read without the link; in a hidden folder it would not be."""
    return any(
        _holds(known, target) and not is_hidden(os.path.relpath(target, known).replace(os.sep, "/"))
        for known in entered
    )


def _names(folder: str, prefix: str) -> Iterator[tuple[str, str, Kind] | _Folder]:
    names: list[str] = []
    folders: set[str] = set()
    links: set[str] = set()
    others: set[str] = set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                names.append(entry.name)
                if _is_folder(entry):
                    folders.add(entry.name)
                    if entry.is_symlink():
                        links.add(entry.name)
                elif not _is_file(entry):
                    others.add(entry.name)
    except OSError:
        yield folder, printable(prefix.rstrip("/")), "unreadable"
    names.sort()
    for name in names:
        path, key = os.path.join(folder, name), prefix + printable(name)
        if name in folders:
            yield _Folder(path, key + "/", name in links)
        else:
            yield path, key, "other" if name in others else "file"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def is_regular(path: str) -> bool:
    """Return whether a path is (or links to) a file with contents of its own: no pipe, device or socket."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False
