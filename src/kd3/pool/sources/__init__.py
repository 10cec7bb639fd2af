"""Where crawled files come from: folders, archives, arrays, tables, lists, and all of them elsewhere.

The rule for names: every regular file is tried, whatever its extension says, since crawls lie
about it. Skipped without a look are sidecars and hidden files (`names.NAME_RULE`). Archives in a
folder are opened in their place of the sorted order; archives inside archives are not. A new kind of
archive is one file and one entry here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kd3.pool.reasons import SIDECAR
from kd3.pool.record import InFile, InMemory, Location, Record, Unreadable, Unusable, printable
from kd3.pool.sources import remote
from kd3.pool.sources.arrays import npy_count, npy_images, npz_count, npz_images
from kd3.pool.sources.batches import batch_count, batch_images, could_be_batch, is_batch
from kd3.pool.sources.expansion import expand
from kd3.pool.sources.folder import is_regular, walk
from kd3.pool.sources.lists import is_list, listed
from kd3.pool.sources.names import archive_kind, is_hidden, is_sidecar
from kd3.pool.sources.tables import arrow_count, arrow_images, parquet_count, parquet_images
from kd3.pool.sources.tar import tar_count, tar_members
from kd3.pool.sources.zip import zip_count, zip_members

__all__ = ["ARCHIVES", "counts", "expand", "list_records", "records"]


class Archive(NamedTuple):
    """An archive among the sources, or in a folder that is one: its members' keys begin with `prefix`."""

    kind: str
    path: str  # or a URL
    source: str
    prefix: str


@dataclass(frozen=True)
class Reader:
    """How a kind of archive is read."""

    members: Callable[[str, str, str], Iterator[Record]]  # (path, source, prefix)
    count: Callable[[str], int | None]


ARCHIVES = {
    "tar": Reader(tar_members, tar_count),
    "zip": Reader(zip_members, zip_count),
    "npy": Reader(npy_images, npy_count),
    "npz": Reader(npz_images, npz_count),
    "parquet": Reader(parquet_images, parquet_count),
    "arrow": Reader(arrow_images, arrow_count),
    "batch": Reader(batch_images, batch_count),
}


def records(sources: Sequence[str]) -> Iterator[Record]:
    """Yield every file of the sources in a stable order, sidecars among them, in constant memory.

    Raises:
        KD3Error: a source does not exist.
    """
    for found in _files(sources):
        if not isinstance(found, Archive):
            yield found
        elif remote.is_url(found.path):
            yield from _elsewhere(found)
        else:
            yield from ARCHIVES[found.kind].members(found.path, found.source, found.prefix)


def list_records(sources: Sequence[str]) -> Iterator[Record]:
    """Yield every file of the sources that may be an image: `records` without the sidecars."""
    for record in records(sources):
        if not (isinstance(record.location, Unusable) and record.location.reason == SIDECAR):
            yield record


def counts(sources: Sequence[str]) -> Iterator[int | None]:
    """Yield about how many records each file or archive has, quicker than listing them.

    None stands for one that would have to be fetched or unpacked to know.
    """
    for found in _files(sources):
        if not isinstance(found, Archive):
            yield 1
        elif remote.is_url(found.path) or is_compressed(found):
            yield None
        else:
            yield ARCHIVES[found.kind].count(found.path)


def is_compressed(archive: Archive) -> bool:
    """Say whether an archive can only be read from its start."""
    return archive.kind == "tar" and not archive.path.lower().endswith(".tar")


def _files(sources: Sequence[str]) -> Iterator[Record | Archive]:
    for path in expand(sources):
        # A list is one because the user names it; what a crawl holds under such a name is a sidecar.
        if is_list(path) and not remote.is_url(path) and is_regular(path):
            source = printable(path)
            for place in listed(path):
                if remote.is_url(place):
                    shown = printable(remote.without_secrets(place))
                    yield _one_remote(place, source, shown, prefix=f"{shown}/")
                else:
                    yield _one(place, source, place)
        elif remote.is_url(path):
            yield from _remote(path)
        elif os.path.isdir(path):
            yield from _in_folder(path)
        else:
            yield _one(path, printable(path), _name(path), prefix="")


def _one(path: str, source: str, key: str, *, prefix: str | None = None) -> Record | Archive:
    """Return a file that is named itself, by the user or by a list."""
    key = printable(key)
    if not is_regular(path):
        absent = not os.path.exists(path)
        return Record(source, key, Unusable("unreadable", "no such file") if absent else Unusable("not a regular file"))
    kind = _kind(path)
    return (
        Archive(kind, path, source, f"{key}/" if prefix is None else prefix)
        if kind
        else Record(source, key, InFile(path))
    )


def _in_folder(folder: str) -> Iterator[Record | Archive]:
    source = printable(folder)
    for path, key, what in walk(folder):
        if what == "other":
            yield Record(source, key, Unusable("not a regular file"))
        elif what == "unreadable":
            yield Record(source, key, Unusable("unreadable", "the folder cannot be listed"))
        elif not is_hidden(key) and (kind := _kind(path)):
            yield Archive(kind, path, source, key + "/")
        elif is_sidecar(key):
            yield Record(source, key, Unusable(SIDECAR))
        else:
            yield Record(source, key, InFile(path))


def _kind(path: str) -> str | None:
    return archive_kind(path) or ("batch" if could_be_batch(path) and is_batch(path) else None)


def _name(path: str) -> str:
    return printable(os.path.basename(path))


def _remote(url: str) -> Iterator[Record | Archive]:
    """Yield what a URL among the sources stands for: a file, an archive, or all that is in a folder."""
    found, is_folder = remote.find(url)
    for place, name in found:
        key = printable(name)
        if (is_folder and is_hidden(key)) or (is_folder and not _kind_by_name(name) and is_sidecar(key)):
            yield Record(remote.without_secrets(url), key, Unusable(SIDECAR))
        else:
            source = remote.without_secrets(url if is_folder else place)
            yield _one_remote(place, source, key, prefix=f"{key}/" if is_folder else "")


def _one_remote(url: str, source: str, key: str, *, prefix: str) -> Record | Archive:
    if kind := _kind_by_name(remote.last_part(url)):
        return Archive(kind, url, source, prefix)
    location = remote.Remote(url)
    # Other processes have another memory.
    return Record(source, key, _at_hand(location) if url.startswith("memory://") else location)


def _kind_by_name(name: str) -> str | None:
    return archive_kind(name) or ("batch" if could_be_batch(name) else None)


def _elsewhere(found: Archive) -> Iterator[Record]:
    """Yield a remote archive's members with their bytes, from a copy that is removed at the end."""
    name = found.prefix.rstrip("/") or printable(remote.last_part(found.path))
    with remote.temporary_folder() as folder:
        try:
            path = remote.copied(found.path, folder)
        except Unreadable as problem:
            yield Record(found.source, name, Unusable(problem.reason, problem.detail))
            return
        if found.kind == "batch" and not is_batch(path):  # only its name was one
            yield Record(found.source, name, _at_hand(InFile(path)))
            return
        for record in ARCHIVES[found.kind].members(path, found.source, found.prefix):
            yield Record(record.source, record.key, _at_hand(record.location))


def _at_hand(location: Location) -> Location:
    if isinstance(location, Unusable):
        return location
    try:
        return InMemory(location.read())
    except Unreadable as problem:
        return Unusable(problem.reason, problem.detail)
    except OSError as problem:
        return Unusable("unreadable", problem.strerror or str(problem))
