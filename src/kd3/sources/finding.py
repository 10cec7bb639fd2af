"""Sources of crawled files: folders, tars, zips, tables, arrays, lists, URLs. A new kind is a file and an entry.

The rule for names: every regular file is tried, with any extension, since extensions in crawls are unreliable.
Hidden files and sidecars (`files.SIDECAR_SUFFIXES`) are skipped unread. Archives in a folder are opened at their place
in the sorted order. Tables, arrays and batches of images count as archives here. Archives inside archives are not
opened. A list of paths is read only if it is given as a source; in a folder it is a sidecar.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import NamedTuple

from kd3.runtime.errors import KD3Error
from kd3.runtime.files import archive_by_contents
from kd3.sources import apart
from kd3.sources.arrays import npy_count, npy_members, npz_count, npz_members
from kd3.sources.batches import (
    batch_kind,
    cifar_count,
    cifar_members,
    idx_count,
    idx_members,
    pickle_count,
    pickle_members,
)
from kd3.sources.containers import Limits, first_bytes, sidecar, unusable
from kd3.sources.files import (
    archive_kind,
    base_name,
    is_hidden,
    is_list,
    is_regular,
    is_sidecar,
    may_hold_labels,
    shown,
    shown_beside,
    walk,
)
from kd3.sources.locations import Expanded, check_list, expand, expand_braces, is_text, listed
from kd3.sources.record import FILE_LIMIT, SIDECAR, InFile, Record, Unusable, printable, too_large
from kd3.sources.remote import Remote, is_http
from kd3.sources.tables import arrow_count, arrow_members, parquet_count, parquet_members
from kd3.sources.tar import is_packed, tar_count, tar_members
from kd3.sources.trust import as_path, beside, is_remote
from kd3.sources.zip import zip_count, zip_members

__all__ = ["check_given", "contents", "counts", "expand", "expand_braces", "find", "list_records", "records"]


class Archive(NamedTuple):
    """An archive among the sources, or in a folder or list that is one: its members' keys begin with `prefix`.

    The prefix is empty where the archive is a source itself.
    """

    kind: str
    path: str
    source: str
    prefix: str


class Reader(NamedTuple):
    """Reader of a kind of archive."""

    members: Callable[..., Iterator[Record]]  # (path, source, prefix, *, limit: bytes that it may unpack to)
    count: Callable[[str], int]


ARCHIVES = {
    "tar": Reader(tar_members, tar_count),
    "zip": Reader(zip_members, zip_count),
    "parquet": Reader(parquet_members, parquet_count),
    "arrow": Reader(arrow_members, arrow_count),
    "npy": Reader(npy_members, npy_count),
    "npz": Reader(npz_members, npz_count),
    "pickle": Reader(pickle_members, pickle_count),
    "cifar": Reader(cifar_members, cifar_count),
    "idx": Reader(idx_members, idx_count),
}
DEFAULT = Limits()
UNLIKE_IMAGES = ("no images", "unsafe pickle")


def records(sources: Sequence[str]) -> Iterator[Record]:
    """Yield every file of the sources in a stable order, sidecars among them, in constant memory.

    Raises:
        KD3Error: a source does not exist.
    """
    for found in find(sources):
        yield from contents(found)


def list_records(sources: Sequence[str]) -> Iterator[Record]:
    """Yield every file of the sources that may be an image: `records` without the sidecars."""
    for record in records(sources):
        if not (isinstance(record.location, Unusable) and record.location.reason == SIDECAR):
            yield record


def find_part(sources: Sequence[str], part: tuple[int, int] | None) -> Iterator[Record | Archive]:
    """Yield the findings of `find`, or the I-th of N consecutive parts of them."""
    if part is None:
        yield from find(sources)
        return
    number, of = part
    total = _total(found := expand(sources))
    yield from islice(find(found), (number - 1) * total // of, number * total // of)


def check_part(sources: Sequence[str], part: tuple[int, int] | None) -> None:
    """Check that there is enough to divide.

    Raises:
        KD3Error: there are fewer files and archives than parts.
    """
    if part is None:
        return
    total = _total(expand(sources))
    if total < part[1]:
        raise KD3Error(
            f"the sources are {total:,} files and archives, too few for {part[1]:,} parts; an archive is never divided"
        )


def _total(found: Expanded) -> int:
    if found.total is None:
        found.total = sum(1 for _ in find(found))
    return found.total


def contents(found: Record | Archive, limits: Limits = DEFAULT, *, at_most: int | None = None) -> Iterator[Record]:
    """Yield the records of a finding of `find`, or the first ones; archives have limits."""
    if not isinstance(found, Archive):
        yield found
    elif _is_opened_here(found):
        limit = limits.most(found.path)
        yield from islice(ARCHIVES[found.kind].members(found.path, found.source, found.prefix, limit=limit), at_most)
    else:
        yield from apart.members(*found, limits, at_most=at_most)


def _is_opened_here(archive: Archive) -> bool:
    """Return whether reading headers is enough to locate the members, at no more cost than the file's length."""
    if archive.path.startswith("memory:"):
        return True  # in this process's memory
    is_headers = archive.kind in ("zip", "cifar") or (archive.kind == "tar" and not is_compressed(archive))
    return is_headers and not is_remote(archive.path)


def counts(
    sources: Sequence[str], part: tuple[int, int] | None = None, *, given_up: Callable[[], bool] = lambda: False
) -> Iterator[int | None]:
    """Estimate the records of each file or archive, faster than by listing; `given_up` cancels it.

    None stands for one that would have to be unpacked or fetched to know.
    """
    for found in find_part(sources, part):
        if isinstance(found, Archive):
            if is_remote(found.path) or is_compressed(found):
                yield None
            elif _is_opened_here(found):
                yield ARCHIVES[found.kind].count(found.path)
            else:
                yield apart.count(found.kind, found.path, DEFAULT, given_up=given_up)
        else:
            yield 1


def is_compressed(archive: Archive) -> bool:
    """Return whether an archive can only be read sequentially."""
    return archive.kind == "tar" and is_packed(archive.path)


def check_given(sources: Sequence[str], found: Expanded) -> None:
    """Check files given as sources, if a cheap check can tell that they hold no images; `found` learns their kinds.

    Raises:
        KD3Error: one holds no images, is no pickle of arrays alone, or is a list without a path.
    """
    for source in sources:
        path = source.removeprefix("file://")
        if not os.path.isfile(path):
            continue
        kind = found.kinds[as_path(path)] = _kind(path)
        if kind == "list":
            check_list(path)
        elif kind:
            for record in contents(Archive(kind, path, shown(path), ""), at_most=1):
                if isinstance(record.location, Unusable) and record.location.reason in UNLIKE_IMAGES:
                    raise KD3Error(f"{shown(path)} holds no images that kd3 can read: {record.location.detail}")


def find(sources: Sequence[str]) -> Iterator[Record | Archive]:
    """Yield the files and archives of the sources in a stable order; archives are not opened.

    Raises:
        KD3Error: a source does not exist.
    """
    found = expand(sources)
    for path in found:
        yield from _of_remote(path, found) if is_remote(path) else _of_path(path, found)


def _of_path(path: str, known: Expanded) -> Iterator[Record | Archive]:
    source = printable(path)
    if os.path.isdir(path):
        yield from _in_folder(path)
    elif not is_regular(path):
        yield Record(source, _name(path), Unusable("not a regular file"))
    elif (kind := known.kinds[path] if path in known.kinds else _kind(path)) == "list":
        yield from _in_list(path)
    else:
        yield _of_kind(kind, path, source, _name(path), "")


def _in_folder(folder: str) -> Iterator[Record | Archive]:
    source = printable(folder)
    for path, key, what in walk(folder):
        if what == "other":
            yield Record(source, key, Unusable("not a regular file"))
        elif what == "loop":
            yield Record(
                source, key, Unusable("not a regular file", "a link to a folder that holds it or is read anyway")
            )
        elif what == "unreadable":
            yield Record(source, key, Unusable("unreadable", "the folder cannot be listed"))
        else:
            yield _placed(path, source, key)


def _of_remote(url: str, known: Expanded) -> Iterator[Record | Archive]:
    source = shown(url)
    try:
        if known.is_folder(url):
            for path, name, size in known.listing(url):
                key = shown_beside(url, name) if is_http(url) else printable(name)
                if isinstance(path, Unusable):
                    yield Record(source, key, path)
                elif size is not None and size > FILE_LIMIT and archive_kind(path) is None:
                    yield Record(source, key, Unusable("file too large", too_large().detail))
                else:
                    yield _placed(path, source, key)
        elif is_list(url) and is_text(url):
            yield from _in_list(url)
        else:
            yield _file(url, source, _name(url), "")
    except Exception as problem:
        yield Record(source, _name(url) or source, unusable(problem))


def _in_list(path: str) -> Iterator[Record | Archive]:
    source = shown(path)
    try:
        for number, (entry, label) in enumerate(listed(path), 1):
            if isinstance(entry, Unusable):
                yield Record(source, f"entry {number}", entry)
                continue
            found = _of_entry(path, source, entry)
            yield found if label is None or isinstance(found, Archive) else replace(found, label=label)
    except Exception as problem:
        yield Record(source, _name(path), unusable(problem))


def _of_entry(path: str, source: str, entry: str) -> Record | Archive:
    key = shown_beside(path, entry)
    try:
        where = beside(path, entry)
        found = _file(where, source, key, key + "/")
    except Exception as problem:  # any error costs only this entry
        return Record(source, key, unusable(problem))
    if isinstance(found, Archive) and not is_remote(where) and not is_regular(where):
        return Record(source, key, Unusable("unreadable", "there is no such file"))
    return found


def _placed(path: str, source: str, key: str) -> Record | Archive:
    try:
        return _in_place(path, source, key)
    except Exception as problem:
        return Record(source, key, unusable(problem))


def _in_place(path: str, source: str, key: str) -> Record | Archive:
    """Return the kind of a file in a folder: sidecars are known by their names, archives come before them."""
    if is_hidden(key) or (is_sidecar(key) and archive_kind(path) is None):
        location = Remote(path) if is_remote(path) else InFile(path)
        return Record(source, key, sidecar(location) if may_hold_labels(key) else Unusable(SIDECAR))
    return _file(path, source, key, key + "/")


def _file(path: str, source: str, key: str, prefix: str) -> Record | Archive:
    return _of_kind(_archive_kind(path), path, source, key, prefix)


def _of_kind(kind: str | None, path: str, source: str, key: str, prefix: str) -> Record | Archive:
    if kind:
        return Archive(kind, path, source, prefix)
    return Record(source, key, Remote(path) if is_remote(path) else InFile(path))


def _kind(path: str) -> str | None:
    if is_list(path):
        return "list" if is_text(path) else None
    return _archive_kind(path)


def _archive_kind(path: str) -> str | None:
    kind = archive_kind(path) or batch_kind(path)
    # Tars are called zips, and the other way round.
    return archive_by_contents(first_bytes(path)) or kind if kind in ("tar", "zip") else kind


def _name(path: str) -> str:
    return shown(base_name(path))
