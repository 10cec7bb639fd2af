"""What all readers of containers need: a file to read from, here or elsewhere, and one row for its damage."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from kd3.errors import KD3Error
from kd3.pool.pixels import Layout, NoImages
from kd3.pool.reasons import SIDECAR
from kd3.pool.record import InFile, InMemory, Location, Pixels, Record, Unreadable, Unusable
from kd3.pool.remote import is_remote, opened_remote
from kd3.pool.sources.names import base_name, may_hold_labels, shown
from kd3.pool.without_secrets import without_secrets

LABELS_LIMIT = 16 << 20  # bytes: a table of a million names and labels


class UnsafePickle(Exception):
    """A pickle that asks for code; the message names what for."""


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """Open a file, here or elsewhere, to be read at any place; raises OSError, or as `opened_remote`."""
    if is_remote(path):
        with opened_remote(path) as file:
            yield file
    else:
        with open(path, "rb") as file:
            yield file


def guarded(records: Iterator[Record], path: str, source: str, prefix: str) -> Iterator[Record]:
    """Yield the records of a container, and where reading it fails one more that says why.

    Raises:
        KD3Error: a package is missing.
    """
    try:
        yield from records
    except Exception as problem:
        # Besides their own errors readers pass on those of zlib, bz2, lzma and struct, and IndexError,
        # RecursionError, MemoryError where headers are made to harm.
        yield Record(source, prefix.rstrip("/") or shown(base_name(path)), unusable(problem))


def unusable(problem: Exception) -> Unusable:
    """Return what a reader's error means for a container; a KD3Error, of a missing package, is raised again."""
    if isinstance(problem, KD3Error):
        raise problem
    if isinstance(problem, Unreadable):
        return Unusable(problem.reason, problem.detail)
    if isinstance(problem, NoImages):
        return Unusable("no images", str(problem))
    if isinstance(problem, UnsafePickle):
        return Unusable("unsafe pickle", str(problem))
    return Unusable("archive damaged", without_secrets(str(problem))[:300] or type(problem).__name__)


def is_labels(name: str, size: int) -> bool:
    """Say whether a member of an archive is a sidecar that may hold labels, and no larger than such are."""
    return size <= LABELS_LIMIT and may_hold_labels(name)


def sidecar(contents: Location) -> Unusable:
    """Return what stands for a sidecar whose contents may be asked for."""
    return Unusable(SIDECAR, contents=contents)


def ranges(
    path: str, file: BinaryIO, offset: int, layout: Layout, count: int, *, between: int = 0
) -> Iterator[Location]:
    """Yield the places of images from `offset` on, with so many bytes between them; what lies elsewhere is read here.

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


def beside(path: str, entry: str) -> str:
    """Return the path or URL that an entry of the file `path` means: relative to its folder, unless it is whole."""
    if is_remote(entry):
        return entry
    if is_remote(path):
        return f"{path.partition('?')[0].rpartition('/')[0]}/{entry.lstrip('/')}"
    return os.path.join(os.path.dirname(path), entry)
