"""Images in batch files: the pickles of CIFAR and of small ImageNet, and CIFAR's binary version."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO

import numpy as np

from kd3.pool.allowed import is_remote
from kd3.pool.pixels import Layout
from kd3.pool.reasons import SIDECAR
from kd3.pool.record import InMemory, Location, Record, Unreadable, Unusable
from kd3.pool.sources.arrays import NamedArray, array_count, array_records
from kd3.pool.sources.containers import guarded, opened, ranges
from kd3.pool.sources.folder import is_regular
from kd3.pool.sources.names import base_name, may_be_batch, shown
from kd3.pool.sources.pickle_commands import Damaged, Span
from kd3.pool.sources.safe_pickle import Array, read_pickle

PICKLE, FIRST_PROTOCOL, LAST_PROTOCOL = 0x80, 2, 5
CIFAR = Layout(32, 32, 3, planes=True)
# Bytes of a row before its pixels, and how many classes each of them may name: CIFAR-10's, CIFAR-100's.
CIFAR_ROWS = ((10,), (20, 100))
LOOKED_AT = 100  # rows, whose labels tell a batch from other files of its length


def batch_kind(path: str) -> str | None:
    """Return "pickle" or "cifar" where the contents are such; only what has a likely name is opened."""
    if not may_be_batch(path) or not (is_remote(path) or is_regular(path)):
        return None
    try:
        with opened(path) as file:
            head = file.read(2)
            if len(head) == 2 and head[0] == PICKLE and FIRST_PROTOCOL <= head[1] <= LAST_PROTOCOL:
                return "pickle"
            return "cifar" if base_name(path).endswith(".bin") and _labels_before(file) else None
    except (OSError, Unreadable):
        return None  # where it is read it is told


def pickle_members(path: str, source: str, prefix: str, *, limit: int | None = None) -> Iterator[Record]:
    """Yield the images of a pickled batch; a damaged or unfit one gives one record that says so."""
    return guarded(_of_pickle(path, source, prefix), path, source, prefix, limit)


def pickle_count(path: str) -> int:
    """Return about how many records `pickle_members` yields."""
    with opened(path) as file:
        return array_count(_arrays(path, file)) or 1


def cifar_members(path: str, source: str, prefix: str, *, limit: int | None = None) -> Iterator[Record]:
    """Yield the images of a binary batch."""
    return guarded(_of_cifar(path, source, prefix), path, source, prefix, limit)


def cifar_count(path: str) -> int:
    """Return how many images a binary batch has."""
    with opened(path) as file:
        labels = _labels_before(file)
        return file.seek(0, os.SEEK_END) // (labels + CIFAR.size)


def _of_cifar(path: str, source: str, prefix: str) -> Iterator[Record]:
    with opened(path) as file:
        labels = _labels_before(file)
        count = file.seek(0, os.SEEK_END) // (labels + CIFAR.size)
        for number, location in enumerate(ranges(path, file, labels, CIFAR, count, between=labels)):
            yield Record(source, f"{prefix}{number}", location)


def _of_pickle(path: str, source: str, prefix: str) -> Iterator[Record]:
    with opened(path) as file:
        arrays = _arrays(path, file)
        if not arrays and prefix:  # the names of the classes, beside the batches
            yield Record(source, prefix.rstrip("/"), Unusable(SIDECAR))
        else:
            yield from array_records(arrays, source, prefix)


def _arrays(path: str, file: BinaryIO) -> list[NamedArray]:
    found = read_pickle(file)
    named = found.items() if isinstance(found, dict) else [("", found)]
    return [
        NamedArray(_text(name), array.shape, array.dtype, array.fortran, partial(_images, path, file, array))
        for name, array in named
        if isinstance(array, Array)
    ]


def _images(path: str, file: BinaryIO, array: Array, layout: Layout, count: int) -> Iterator[Location]:
    data = array.data
    size = data.size if isinstance(data, Span) else len(data) if isinstance(data, (bytes, bytearray)) else -1
    if size != count * layout.size:
        raise Damaged("an array has more or fewer bytes than its shape says")
    if isinstance(data, Span):
        yield from ranges(path, file, data.offset, layout, count)
    else:
        for start in range(0, size, layout.size):
            yield InMemory(layout.as_file(bytes(data[start : start + layout.size])))


def _text(name: Any) -> str:
    return shown(name.decode("latin-1") if isinstance(name, bytes) else str(name))


def _labels_before(file: BinaryIO) -> int:
    """Return how many label bytes come before the pixels of each row of a CIFAR binary file, 0 where it is none."""
    size = file.seek(0, os.SEEK_END)
    for classes in CIFAR_ROWS:
        row = CIFAR.size + len(classes)
        if size and size % row == 0:
            file.seek(0)
            first = np.frombuffer(file.read(min(size, LOOKED_AT * row)), dtype=np.uint8).reshape(-1, row)
            if (first[:, : len(classes)] < classes).all():
                return len(classes)
    return 0
