"""Folders behind a URL, each asked for by itself: one that cannot be listed is named and costs only what it holds.

fsspec's own walk passes over such folders in silence (`on_error="omit"`). Object stores list all names below a folder
at once, and fail as a whole: they keep their own way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from kd3.sources.record import Unreadable, Unusable
from kd3.sources.remote import ARCHIVE_WAITS, filesystem, is_http, patiently

DEEPEST = 100  # levels of folders of a web server, which may make up new ones without end
MOST_FOLDERS = 100_000  # of a web server, likewise


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, a folder, or a folder that cannot be listed, by its path in the file system."""

    path: str
    is_folder: bool = False
    size: int | None = None  # in bytes, where it is known
    problem: Unusable | None = None


def files_below(url: str) -> Iterator[Entry]:
    """Yield the files below a folder, and the folders that cannot be listed, in any order.

    Raises:
        Unreadable: the folder itself cannot be listed.
        KD3Error: the protocol's package is missing.
    """
    system, path = filesystem(url)
    if not is_http(url) and _lists_at_once(system):
        found: dict[str, Any] = patiently(url, lambda: system.find(path, detail=True), ARCHIVE_WAITS)
        entries: Iterator[Entry] = (_entry(name, info) for name, info in found.items())
    else:
        entries = _walked(url, system, path, DEEPEST if is_http(url) else None)
    yield from (entry for entry in entries if entry.problem or not entry.is_folder)


def matching(root: str, rest: str) -> tuple[list[Entry], list[Entry]]:
    """Return what matches a URL with stars, sorted, and the folders that cannot be listed.

    `root` is the folder above the first star, and `rest` follows it. fsspec's own `glob` passes over a folder that
    cannot be listed in silence, as its walk does; only of object stores that list all names at once, for "**", it fails
    as a whole. In the names of web folders only "*" is a star.

    Raises:
        Unreadable: that folder cannot be listed.
        KD3Error: the protocol's package is missing.
    """
    from fsspec.utils import glob_translate

    system, path = filesystem(root)
    start = path.rstrip("/") + "/"
    if "**" in rest and not is_http(root) and _lists_at_once(system):
        whole = start.removeprefix("/" * (not path)) + rest
        listed: dict[str, Any] = patiently(root, lambda: system.glob(whole, detail=True), ARCHIVE_WAITS)
        return sorted((_entry(name, info) for name, info in listed.items()), key=_by_path), []
    pattern = re.compile(glob_translate(re.sub(r"[?\[]", r"[\g<0>]", rest) if is_http(root) else rest))
    levels = DEEPEST if "**" in rest else rest.rstrip("/").count("/") + 1
    found, unlisted = [], []
    for entry in _walked(root, system, path, levels, deeper="**" in rest):
        name = entry.path.removeprefix(start).strip("/")
        if entry.problem:
            unlisted.append(entry)
        elif pattern.match(name + ("/" if rest.endswith("/") and (is_http(root) or entry.is_folder) else "")):
            found.append(entry)
    return sorted(found, key=_by_path), sorted(unlisted, key=_by_path)


def _by_path(entry: Entry) -> str:
    return entry.path


def _walked(url: str, system: Any, root: str, levels: int | None, *, deeper: bool = True) -> Iterator[Entry]:
    """Yield all below a folder, down to a number of levels; with `deeper`, folders below them are named as unlisted."""
    waiting = [(root, 0)]
    asked = 0
    while waiting:
        folder, level = waiting.pop()
        if level == levels:
            if deeper:
                yield _unlisted(folder, f"it lies more than {levels} levels deep, and a server may make them up")
            continue
        if asked == MOST_FOLDERS and is_http(url):
            yield _unlisted(folder, f"{asked:,} folders have been listed, and a server may make them up")
            return
        asked += 1
        try:
            listing = patiently(url, partial(system.ls, folder, detail=True), ARCHIVE_WAITS)
        except Unreadable as problem:
            if folder == root:
                raise
            yield _unlisted(folder, problem.detail, problem)
            continue
        for info in listing:
            entry = _entry(info["name"], info)
            if entry.path.rstrip("/") == folder.rstrip("/"):
                continue  # some list a folder in itself
            yield entry
            if entry.is_folder:
                waiting.append((entry.path, level + 1))


def _entry(name: str, info: dict[str, Any]) -> Entry:
    return Entry(name, name.endswith("/") or info.get("type") == "directory", info.get("size"))


def _unlisted(folder: str, why: str, problem: Unreadable | None = None) -> Entry:
    reason = "unreachable" if problem is None else problem.reason
    return Entry(folder, is_folder=True, problem=Unusable(reason, f"the folder cannot be listed: {why}"))


def _lists_at_once(system: Any) -> bool:
    from fsspec.asyn import AsyncFileSystem
    from fsspec.spec import AbstractFileSystem

    kind = type(system)
    if isinstance(system, AsyncFileSystem):
        return kind._find is not AsyncFileSystem._find
    return kind.find is not AbstractFileSystem.find
