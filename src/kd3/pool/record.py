"""A file found in a crawl with the location of its bytes, small enough to send to another process."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from kd3.pool.pixels import Layout
from kd3.pool.reasons import Reason

FILE_LIMIT = 256 << 20  # bytes; no photograph is larger, and a worker must hold it in memory


class Unreadable(Exception):
    """The bytes cannot be read; carries the reason and a detail."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason: Reason = reason
        self.detail = detail


class Location(Protocol):
    """Place of bytes."""

    def read(self) -> bytes:
        """Return them, or raise Unreadable or OSError."""


@dataclass(frozen=True, slots=True)
class Label:
    """The class that a source gives an image: its number, its name, or both."""

    number: int | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """A file of a crawl: its source, its path there, the location of its bytes."""

    source: str
    key: str  # "/" separated
    location: Location
    label: Label | None = None  # if the container has one


@dataclass(frozen=True, slots=True)
class InFile:
    """A file, or a range of one (a member of an uncompressed tar)."""

    path: str
    offset: int = 0
    size: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return InFile, (self.path, self.offset, self.size)  # dataclasses do it several times slower

    def read(self) -> bytes:
        """Return the range's bytes; a file beyond the limit is refused unread."""
        handle = _open_at_once(self.path)
        try:
            return _range(handle, self.offset, self.size)
        finally:
            os.close(handle)


@dataclass(frozen=True, slots=True)
class Pixels:
    """An image of an array: a range of a file, with its pixel layout."""

    range: InFile
    layout: Layout

    def __reduce__(self) -> tuple[Any, ...]:
        return Pixels, (self.range, self.layout)

    def read(self) -> bytes:
        """Return the image as the bytes of a file."""
        return self.layout.as_file(self.range.read())


class Reader:
    """Reads one location after another, and keeps an archive open for its members."""

    def __init__(self) -> None:
        self._path: str | None = None
        self._handle = -1

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._path is not None:
            os.close(self._handle)

    def read(self, location: Location) -> bytes:
        """Return the bytes at a location; raises as its own `read` does."""
        if isinstance(location, Pixels):
            return location.layout.as_file(self.read(location.range))
        if not isinstance(location, InFile) or location.size is None:
            return location.read()
        if location.path != self._path:
            handle = _open_at_once(location.path)
            if self._path is not None:
                os.close(self._handle)
            self._path, self._handle = location.path, handle
        return _range(self._handle, location.offset, location.size)


def _open_at_once(path: str) -> int:
    # A named pipe in place of a file must not block a worker forever.
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))


def _range(handle: int, offset: int, size: int | None) -> bytes:
    if size is None:
        size = os.fstat(handle).st_size
    if size > FILE_LIMIT:
        raise too_large()
    data = os.pread(handle, size, offset)
    while len(data) < size and (more := os.pread(handle, size - len(data), offset + len(data))):
        data += more
    if len(data) < size:
        raise Unreadable("truncated", "the archive ends inside this file")
    return data


def too_large() -> Unreadable:
    """Return the error for a file beyond the limit."""
    return Unreadable("file too large", f"more than {FILE_LIMIT >> 20} MiB")


@dataclass(frozen=True, slots=True)
class InZip:
    """A member of a zip, by its place in the directory (names need not be unique)."""

    path: str
    place: int

    def read(self) -> bytes:
        """Return the member's bytes, uncompressed."""
        try:
            archive = open_zip(self.path)
            contents = unpacked(archive, archive.infolist()[self.place])
        except Exception as problem:
            raise Unreadable("archive damaged", f"{type(problem).__name__}: {problem}") from None
        return contents.read()


def unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> InMemory | Unusable:
    """Return a zip's member uncompressed, or raise the reason."""
    try:
        with archive.open(member) as handle:
            data = handle.read(FILE_LIMIT + 1)
    except Unreadable:
        raise  # a network error
    except Exception as problem:
        # zlib, lzma, bz2 and zipfile each raise their own.
        return Unusable("archive damaged", f"{type(problem).__name__}: {problem}")
    return InMemory(data) if len(data) <= FILE_LIMIT else Unusable("file too large", too_large().detail)


def open_zip(path: str) -> zipfile.ZipFile:
    """Return an open zip; a process keeps a few, since their directories are slow to read."""
    now = os.stat(path)
    # A file that was replaced since is another zip.
    return _open_zip(path, now.st_ino, now.st_size, now.st_mtime_ns)


@lru_cache(maxsize=4)
def _open_zip(path: str, *version: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


@dataclass(frozen=True, slots=True)
class InMemory:
    """Bytes already read when the file was found (compressed tars can only be read in order)."""

    data: bytes

    def read(self) -> bytes:
        """Return them."""
        return self.data


@dataclass(frozen=True, slots=True)
class Unusable:
    """A file known to be no image without opening it."""

    reason: Reason
    detail: str = ""
    contents: Location | None = None  # of a sidecar, which may hold labels

    def read(self) -> bytes:
        """Raise the reason."""
        raise Unreadable(self.reason, self.detail)


def printable(name: str) -> str:
    """Return a file name as text that any file can hold (undecodable bytes become escapes)."""
    return name if name.isascii() else name.encode("utf-8", "backslashreplace").decode("utf-8")
