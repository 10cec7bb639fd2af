"""One file found in a crawl, the way to its bytes, and the reasons for rejecting it."""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol, get_args

import numpy as np

Reason = Literal[
    "empty",
    "not an image",
    "needs a plug-in",  # a picture of a kind that Pillow reads with another package
    "truncated",
    "too small",
    "too many pixels",
    "unreadable",
    "not a regular file",
    "file too large",
    "archive damaged",
    "encrypted",
    "decoder crashed",
    "took too long",
    "no images",  # a container of something else, such as an array of floats
    "unsafe pickle",  # it would run code
    "not downloaded",  # the crawler recorded a failure
    "unreachable",  # repeated failures of network or server
    "not allowed",  # a forbidden name in a row or list
    "not installed",  # the package that reads its protocol
    "sidecar",  # metadata by its name: skipped and counted, never in rejected.csv
]
REASONS: tuple[str, ...] = get_args(Reason)
SIDECAR: Literal["sidecar"] = "sidecar"
REMEDIES = {"not allowed": "--trust-entries or --private-hosts allows it"}


def counted(left_out: Mapping[str, int]) -> str:
    """Return files by reason in words, with the flag that allows them.

    >>> counted({"truncated": 2, "not allowed": 1, "sidecar": 4})
    '2 truncated, 1 not allowed (--trust-entries or --private-hosts allows it)'
    """
    return ", ".join(
        f"{count:,} {reason}" + (f" ({REMEDIES[reason]})" if reason in REMEDIES else "")
        for reason, count in left_out.items()
        if count and reason != SIDECAR
    )


LARGEST = 256 << 20  # bytes of an image
CHANNELS = (1, 3, 4)  # grey, RGB, RGB with alpha
FLAT = "data"  # the array of a CIFAR or ImageNet batch: a row holds an image's red, green and blue planes


class NoImages(Exception):
    """The opened data hold no images; the message gives the reason and a remedy."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Layout of an image's bytes in an array: rows of pixels, or one plane per channel."""

    height: int
    width: int
    channels: int  # of CHANNELS
    planes: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        return Layout, (self.height, self.width, self.channels, self.planes)

    @property
    def size(self) -> int:
        """The bytes of an image."""
        return self.height * self.width * self.channels

    def as_file(self, data: bytes) -> bytes:
        """Convert an image's bytes in the array to those of a file: PGM (grey), PPM (RGB), or PNG (with alpha).

        Equal pixels give equal files, from any array.
        """
        if self.planes and self.channels > 1:
            planes = np.frombuffer(data, dtype=np.uint8).reshape(self.channels, self.height, self.width)
            data = planes.transpose(1, 2, 0).tobytes()
        if self.channels == 4:
            return self._as_png(data)
        return b"P%d\n%d %d\n255\n" % (5 if self.channels == 1 else 6, self.width, self.height) + data

    def _as_png(self, data: bytes) -> bytes:
        from PIL import Image

        buffer = io.BytesIO()
        Image.frombytes("RGBA", (self.width, self.height), data).save(buffer, "PNG", compress_level=0)
        return buffer.getvalue()


def images_in(name: str, shape: Sequence[int], dtype: np.dtype[Any], *, fortran: bool = False) -> tuple[int, Layout]:
    """Return the number of images in an array, and their layout.

    Shapes are tried in this order, C being 1, 3 or 4 channels: (N, H, W, C), (N, C, H, W); of three axes
    (H, W, C), one image, then (N, H, W), grey ones; of two, where the array is named "data", (N, 3 * S * S).

    Raises:
        NoImages: the shape is none of these, or the values are not uint8, row by row.
    """
    shape = tuple(shape)
    if dtype.hasobject:
        raise NoImages("its values are Python objects, a pickle, never loaded; save numpy.stack(images) of uint8")
    match shape:
        case (count, height, width, channels) if channels in CHANNELS:
            layout = Layout(height, width, channels)
        case (count, channels, height, width) if channels in CHANNELS:
            layout = Layout(height, width, channels, planes=True)
        case (height, width, channels) if channels in CHANNELS:
            count, layout = 1, Layout(height, width, channels)
        case (count, height, width):
            layout = Layout(height, width, 1)
        case (count, columns) if name == FLAT and columns and columns % 3 == 0 and _is_square(columns // 3):
            side = math.isqrt(columns // 3)
            layout = Layout(side, side, 3, planes=True)
        case _:
            raise NoImages(f"its shape is {shape}, not (N, H, W, 3), (N, 3, H, W) or (N, H, W)")
    if dtype != np.uint8:
        raise NoImages(f"its values are {dtype}, not uint8; {_advice(dtype)}")
    if fortran:
        raise NoImages("it lies in Fortran order; save numpy.ascontiguousarray(array) instead")
    if layout.size > LARGEST:
        raise NoImages(f"its shape is {shape}: one image would have {layout.size:,} bytes")
    if layout.size == 0 or count < 1:
        raise NoImages(f"its shape is {shape}, which is empty")
    return count, layout


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


def _advice(dtype: np.dtype[Any]) -> str:
    if dtype.kind == "f":
        return "of values in [0, 1] save (array * 255).round().astype('uint8')"
    if dtype == np.bool_:
        return "save array.astype('uint8') * 255"
    if dtype.kind in "ui" and dtype.itemsize > 1:
        return "of values up to 255 save array.astype('uint8'), of 16 bits (array // 257).astype('uint8')"
    return "save array.astype('uint8')"


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
