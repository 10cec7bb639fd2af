"""Images in numpy's files: `.npy`, and each array of images in an `.npz`. Pickled objects are never loaded."""

from __future__ import annotations

import ast
import os
import struct
import zipfile
from collections.abc import Iterator
from typing import IO, NamedTuple

from kd3.pool.plain_pixels import InArray, Layout, layout_of
from kd3.pool.record import FILE_LIMIT, InMemory, Record, Unusable, open_zip, printable

MAGIC = b"\x93NUMPY"
HEADER_LIMIT = 1 << 16  # bytes; a header holds a shape and a type
HOW = (
    "kd3 reads uint8 arrays of shape (N, H, W, 3), (N, 3, H, W) or (N, H, W); floats: (255 * x).round().astype('uint8')"
)


class NotImages(Exception):
    """An array that holds no images; says what it is."""


class ArrayHeader(NamedTuple):
    """The header of an npy file: how many images follow it, and how they lie."""

    images: int
    layout: Layout


def read_header(handle: IO[bytes]) -> ArrayHeader:
    """Read an npy header, leaving the handle at the first sample.

    Raises:
        NotImages: it is none, or of an array that holds no images.
    """
    start = handle.read(8)
    if start[:6] != MAGIC or len(start) < 8:
        raise NotImages("not a numpy file")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(handle.read(width), "little")
    if length > HEADER_LIMIT:
        raise NotImages("its header is too long")
    try:
        header = ast.literal_eval(handle.read(length).decode("latin-1"))
        shape, kind = tuple(int(size) for size in header["shape"]), str(header["descr"])
        by_columns = bool(header["fortran_order"])
    except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
        raise NotImages("its header is damaged") from None
    words = f"{shape} of {kind}"
    layout = layout_of(shape)
    if by_columns:
        raise NotImages(f"an array {words} in Fortran order; save np.ascontiguousarray(x)")
    if kind not in ("|u1", "u1", "<u1", ">u1") or layout is None or min(shape) < 1:
        raise NotImages(f"an array {words}; {HOW}")
    if layout.size > FILE_LIMIT:
        raise NotImages(f"an array {words}: one image of it has more than {FILE_LIMIT >> 20} MiB")
    return ArrayHeader(shape[0], layout)


def npy_images(path: str, source: str, prefix: str) -> Iterator[Record]:
    """Yield each image of an npy file by its place; one that holds none gives one record that says so."""
    try:
        with open(path, "rb") as handle:
            count, layout = read_header(handle)
            offset = handle.tell()
            present = (os.fstat(handle.fileno()).st_size - offset) // layout.size
    except NotImages as problem:
        yield Record(source, _name(path, prefix), Unusable("not an image", str(problem)))
        return
    for place in range(min(count, present)):
        yield Record(source, f"{prefix}{place:09d}", InArray(path, offset + place * layout.size, layout))
    if present < count:
        said = f"it ends after {present:,} of {count:,} images"
        yield Record(source, _name(path, prefix), Unusable("archive damaged", said))


def npy_count(path: str) -> int:
    """Return how many images an npy file says it has."""
    with open(path, "rb") as handle:
        try:
            return read_header(handle).images
        except NotImages:
            return 1


def npz_images(path: str, source: str, prefix: str) -> Iterator[Record]:
    """Yield the images of each array in an npz that holds some; others (labels) are passed over.

    Stored arrays are read by range where they are decoded, compressed ones in order, here.
    """
    refused = []
    found = False
    try:
        for member in open_zip(path).infolist():
            name = printable(member.filename.removesuffix(".npy"))
            try:
                for place, location in _member(path, member):
                    found = True
                    yield Record(source, f"{prefix}{name}/{place:09d}", location)
            except NotImages as problem:
                refused.append(f"{name} is {problem}")
        if not found:
            words = "; ".join(refused) or "it is empty"
            yield Record(source, _name(path, prefix), Unusable("not an image", words))
    except Exception as problem:  # as many kinds as the zip source speaks of
        words = f"{type(problem).__name__}: {problem}"
        yield Record(source, _name(path, prefix), Unusable("archive damaged", words))


def npz_count(path: str) -> int:
    """Return how many images an npz has."""
    count = 0
    archive = open_zip(path)
    for member in archive.infolist():
        try:
            with archive.open(member) as handle:
                count += read_header(handle).images
        except NotImages:
            continue
    return count


def _member(path: str, member: zipfile.ZipInfo) -> Iterator[tuple[int, InArray | InMemory]]:
    with open_zip(path).open(member) as handle:
        count, layout = read_header(handle)
        header = handle.tell()
        if member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1:
            start = _start(path, member) + header
            for place in range(count):
                yield place, InArray(path, start + place * layout.size, layout)
            return
        for place in range(count):
            samples = handle.read(layout.size)
            if len(samples) < layout.size:
                raise zipfile.BadZipFile(f"{member.filename} ends after {place:,} of {count:,} images")
            yield place, InMemory(layout.as_file(samples))


def _start(path: str, member: zipfile.ZipInfo) -> int:
    """Return where a stored member's bytes begin: behind its local header, which has lengths of its own."""
    with open(path, "rb") as handle:
        handle.seek(member.header_offset + 26)
        name, extra = struct.unpack("<HH", handle.read(4))
    return member.header_offset + 30 + int(name) + int(extra)


def _name(path: str, prefix: str) -> str:
    return prefix.rstrip("/") or printable(os.path.basename(path))
