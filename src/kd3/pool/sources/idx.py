"""Images in the files of MNIST and its kin (idx), plain or gzipped, with the labels of the file beside them."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

import numpy as np

from kd3.pool.pixels import Layout, NoImages, images_in
from kd3.pool.record import InMemory, Label, Location, Record, Unreadable
from kd3.pool.sources.containers import LABELS_LIMIT, guarded, opened, ranges
from kd3.pool.sources.names import base_name

BYTES = 8  # the code of uint8
HEADER = struct.Struct(">HBB")  # zero, the code of the type, the number of axes; a length of 4 bytes for each follows
GZIP = ".gz"


def idx_members(path: str, source: str, prefix: str, *, limit: int | None = None) -> Iterator[Record]:
    """Yield the images of an idx file; a damaged or unfit one gives one record that says so."""
    return guarded(_of_idx(path, source, prefix), path, source, prefix, limit)


def idx_count(path: str) -> int:
    """Return how many images an idx file has."""
    with _unpacked(path) as file:
        return _header(file)[0]


def _of_idx(path: str, source: str, prefix: str) -> Iterator[Record]:
    labels = _labels(path)
    with _unpacked(path) as file:
        shape = _header(file)
        count, layout = images_in("", shape, np.dtype(np.uint8))
        offset = HEADER.size + 4 * len(shape)
        found = _in_order(file, layout, count) if path.endswith(GZIP) else ranges(path, file, offset, layout, count)
        for number, location in enumerate(found):
            label = Label(labels[number]) if len(labels) == count else None
            yield Record(source, f"{prefix}{number}", location, label)


@contextmanager
def _unpacked(path: str) -> Iterator[BinaryIO]:
    with opened(path) as file:
        if path.endswith(GZIP):
            with gzip.open(file) as contents:
                yield cast(BinaryIO, contents)
        else:
            yield file


def _header(file: BinaryIO) -> tuple[int, ...]:
    zero, kind, axes = HEADER.unpack(file.read(HEADER.size))
    if zero or kind != BYTES or not 1 <= axes <= 4:
        raise NoImages("it is no idx file of bytes")
    return struct.unpack(f">{axes}I", file.read(4 * axes))


def _in_order(file: BinaryIO, layout: Layout, count: int) -> Iterator[Location]:
    for number in range(count):
        data = file.read(layout.size)
        if len(data) < layout.size:
            raise Unreadable("truncated", f"of {count:,} images {number:,} are there")
        yield InMemory(layout.as_file(data))


def _labels(path: str) -> bytes:
    """Return the labels of the file beside this one: `t10k-labels-idx1-ubyte` for `t10k-images-idx3-ubyte`."""
    name = base_name(path)
    labels = path[: len(path) - len(name)] + name.replace("images", "labels").replace("idx3", "idx1")
    try:
        with _unpacked(labels) as file:
            shape = _header(file)
            return file.read(shape[0]) if len(shape) == 1 and shape[0] <= LABELS_LIMIT else b""
    except Exception:  # there is none, or it is no such file; a damaged one raises as gzip likes
        return b""
