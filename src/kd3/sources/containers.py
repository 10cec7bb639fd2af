"""Common part of all container readers: a file to read, here or remote, its limits, and one row for its faults."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from kd3.runtime.errors import KD3Error, in_words
from kd3.runtime.files import FIRST, stand_in
from kd3.sources.files import base_name, is_regular, may_hold_labels, shown
from kd3.sources.record import (
    SIDECAR,
    InFile,
    InMemory,
    Layout,
    Location,
    NoImages,
    Pixels,
    Record,
    Unreadable,
    Unusable,
)
from kd3.sources.remote import opened_remote
from kd3.sources.trust import is_remote, without_secrets

MEMORY = 2 << 30  # bytes of address space for opening one, in addition to the process's initial size
REMOTE_SECONDS = 3600.0  # without a file of a remote archive, which may need a full download first
LEAST_UNPACKED = 4 << 30  # bytes
TIMES_ITS_SIZE = 50  # images hardly shrink; arrays of drawings may, by some tens
REMOTE_UNPACKED = 1 << 40


@dataclass(frozen=True, slots=True)
class Limits:
    """The budget of one archive: seconds without a file of it, bytes that all its files may have, memory to open it."""

    seconds: float = 60.0
    unpacked: int | None = None  # None: a multiple of its own size
    memory: int = MEMORY

    def patience(self, path: str) -> float:
        """Return how many seconds the archive may take to give its next files."""
        return max(self.seconds, REMOTE_SECONDS) if is_remote(path) else self.seconds

    def most(self, path: str) -> int:
        """Return how many bytes the archive may unpack to."""
        if self.unpacked is not None:
            return self.unpacked
        if is_remote(path):
            return REMOTE_UNPACKED
        try:
            return max(LEAST_UNPACKED, TIMES_ITS_SIZE * os.stat(path).st_size)
        except OSError:
            return LEAST_UNPACKED  # reported when it is opened


LABELS_LIMIT = 16 << 20  # bytes: a table of a million names and labels


class UnsafePickle(Exception):
    """A pickle that asks for code; the message names it."""


def first_bytes(path: str) -> bytes:
    """Return the beginning of a file on this machine; nothing of one that lies elsewhere or cannot be read."""
    if is_remote(path) or not is_regular(path):
        return b""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(FIRST)
    except OSError:
        return b""


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """Open a file, here or elsewhere, to be read at any place; raises OSError, or as `opened_remote`."""
    if is_remote(path):
        with opened_remote(path) as file:
            yield file
    else:
        with open(path, "rb") as file:
            yield file


def guarded(
    records: Iterator[Record], path: str, source: str, prefix: str, limit: int | None = None
) -> Iterator[Record]:
    """Yield the records of a container, and one more with the reason if reading fails.

    It fails also where the contents that are at hand have more bytes than `limit`.
    """
    try:
        total = 0
        for record in records:
            if limit is not None and isinstance(record.location, InMemory):
                total += len(record.location.data)
                check_unpacked(total, limit)
            yield record
    except Exception as problem:
        # Besides their own errors readers pass on those of zlib, bz2, lzma and struct, and IndexError,
        # RecursionError, MemoryError where headers are made to harm.
        found = unusable(problem)
        if found.reason == "archive damaged" and (other := stand_in(first_bytes(path))) is not None:
            found = Unusable("archive damaged", other)
        yield Record(source, prefix.rstrip("/") or shown(base_name(path)), found)


def check_unpacked(size: int, limit: int | None) -> None:
    """Stop an archive that has given more bytes than allowed.

    Raises:
        Unreadable: it has given more.
    """
    if limit is not None and size > limit:
        raise Unreadable("file too large", f"the archive unpacks to more than {limit:,} bytes (--max-unpacked)")


def unusable(problem: Exception) -> Unusable:
    """Convert a reader's error for a container or an entry; a KD3Error is about a missing package."""
    if isinstance(problem, KD3Error):
        return Unusable("not installed", str(problem))
    if isinstance(problem, Unreadable):
        return Unusable(problem.reason, problem.detail)
    if isinstance(problem, NoImages):
        return Unusable("no images", str(problem))
    if isinstance(problem, UnsafePickle):
        return Unusable("unsafe pickle", str(problem))
    return Unusable("archive damaged", without_secrets(in_words(problem))[:300])


def is_labels(name: str, size: int) -> bool:
    """Return whether a member of an archive is a sidecar that may hold labels, and no larger than such are."""
    return size <= LABELS_LIMIT and may_hold_labels(name)


def sidecar(contents: Location) -> Unusable:
    """Return what stands for a sidecar whose contents may be asked for."""
    return Unusable(SIDECAR, contents=contents)


def ranges(
    path: str, file: BinaryIO, offset: int, layout: Layout, count: int, *, between: int = 0
) -> Iterator[Location]:
    """Yield the locations of images from `offset` on, with `between` bytes between them; remote ones are read here.

    Raises:
        Unreadable: after those that are there, where the file ends before the last.
    """
    step = layout.size + between
    whole = max(0, min(count, (file.seek(0, os.SEEK_END) - offset + between) // step))
    for number in range(whole):
        start = offset + number * step
        if is_remote(path):
            file.seek(start)
            yield InMemory(layout.as_file(file.read(layout.size)))
        else:
            yield Pixels(InFile(path, start, layout.size), layout)
    if whole < count:
        raise Unreadable("truncated", f"of {count:,} images {whole:,} are there")
