"""Images in the files of CIFAR, of small ImageNet (batches) and of MNIST and its kin (idx)."""

from __future__ import annotations

import gzip
import io
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, BinaryIO, cast

import numpy as np

from kd3.sources.arrays import NamedArray, array_count, array_records
from kd3.sources.containers import LABELS_LIMIT, guarded, opened, ranges
from kd3.sources.files import base_name, is_regular, may_be_batch, shown
from kd3.sources.record import (
    FLAT,
    SIDECAR,
    InMemory,
    Label,
    Layout,
    Location,
    NoImages,
    Record,
    Unreadable,
    Unusable,
    images_in,
)
from kd3.sources.safe_pickle import Array, Damaged, Span, read_pickle
from kd3.sources.trust import beside, is_remote

PICKLE, FIRST_PROTOCOL, LAST_PROTOCOL = 0x80, 2, 5
CIFAR = Layout(32, 32, 3, planes=True)
# Bytes of a row before its pixels, and how many classes each of them may name: CIFAR-10's, CIFAR-100's.
CIFAR_ROWS = ((10,), (20, 100))
CIFAR_NAMES = {1: "batches.meta.txt", 2: "fine_label_names.txt"}
PICKLED_LABELS = {"fine_labels": "fine_label_names", "labels": "label_names"}  # and where their names are
AT_HAND = "memory://batch"  # what is read from memory is no range of a file on a disk
NAMES_LIMIT = 1 << 16
PROBED_ROWS = 100  # rows, whose labels tell a batch from other files of its length


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
        return array_count(_arrays(path, file, read_pickle(file))) or 1


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
        names = _text_names(path, CIFAR_NAMES[labels])
        for number, location in enumerate(ranges(path, file, labels, CIFAR, count, between=labels)):
            file.seek(number * (labels + CIFAR.size) + labels - 1)  # the finest label is the last
            yield Record(source, f"{prefix}{number}", location, _named(file.read(1)[0], names))


def _of_pickle(path: str, source: str, prefix: str) -> Iterator[Record]:
    with opened(path) as file:
        found = read_pickle(file)
        arrays = _arrays(path, file, found)
        if not arrays and prefix:  # the names of the classes, beside the batches
            yield Record(source, prefix.rstrip("/"), Unusable(SIDECAR))
            return
        labels = _labels(found, partial(_pickled_names, path))
        for number, record in enumerate(array_records(arrays, source, prefix)):
            yield replace(record, label=labels[number]) if number < len(labels) else record


def meta_names(data: bytes) -> dict[str, list[str]]:
    """Return the names of the classes in CIFAR's file of names, by entry.

    Raises:
        Exception: it is damaged, or names a class twice.
    """
    values = {_text(key): value for key, value in read_pickle(io.BytesIO(data)).items()}
    names = {entry: [_text(one) for one in values[entry]] for entry in PICKLED_LABELS.values() if entry in values}
    for entry, found in names.items():
        if len(set(found)) < len(found):
            raise Damaged(f"{entry} has a class twice")
    if not names:
        raise Damaged("it names no classes")
    return names


def batch_in_archive(data: bytes, names: Mapping[str, Sequence[str]], source: str, prefix: str) -> Iterator[Record]:
    """Yield the images of a pickled batch in the published archive of CIFAR; `names` are those of `meta_names`."""
    file = io.BytesIO(data)
    found = read_pickle(file)
    labels = _labels(found, lambda entry: names.get(entry, []))
    records = array_records(_arrays(AT_HAND, file, found), source, prefix)
    for number, record in enumerate(records):
        yield replace(record, label=labels[number]) if number < len(labels) else record


def _labels(found: Any, names_of: Callable[[str], Sequence[str]]) -> list[Label]:
    """Return the labels of a batch's images, where it has as many as it has rows of data."""
    if not isinstance(found, dict):
        return []
    values = {_text(name): value for name, value in found.items()}
    data = values.get(FLAT)
    for name, names in PICKLED_LABELS.items():
        numbers = values.get(name)
        if isinstance(numbers, list) and all(type(number) is int for number in numbers):
            known = names_of(names)
            fits = isinstance(data, Array) and data.shape[:1] == (len(numbers),)
            return [_named(number, known) for number in numbers] if fits else []
    return []


def _named(number: int, names: Sequence[str]) -> Label:
    return Label(number, names[number] if 0 <= number < len(names) else None)


def _pickled_names(path: str, entry: str) -> list[str]:
    """Return the names of the classes in the file that the published archives have beside the batches."""
    for name in ("batches.meta", "meta"):
        try:
            with opened(beside(path, name)) as file:
                return _names_in(read_pickle(file), entry)
        except Exception:  # it is not there, or another file of that name: numbers will do
            continue
    return []


def _names_in(found: Any, entry: str) -> list[str]:
    values = {_text(key): value for key, value in found.items()}
    return [_text(one) for one in values[entry]]


def _text_names(path: str, name: str) -> list[str]:
    try:
        with opened(beside(path, name)) as file:
            return file.read(NAMES_LIMIT).decode().split()
    except (OSError, Unreadable, UnicodeDecodeError):
        return []


def _arrays(path: str, file: BinaryIO, found: Any) -> list[NamedArray]:
    return [
        NamedArray(name, array.shape, array.dtype, array.fortran, partial(_images, path, file, array))
        for name, array in _named_arrays(found)
    ]


def _named_arrays(found: Any) -> Iterator[tuple[str, Array]]:
    """Yield arrays by name: the value, those of a dictionary, and those of dictionaries in it as `train/data`."""
    for name, value in found.items() if isinstance(found, dict) else [("", found)]:
        # No deeper: what a few bytes can nest without an end is never walked through.
        for inner, array in value.items() if isinstance(value, dict) else [(None, value)]:
            if isinstance(array, Array):
                yield _text(name) if inner is None else f"{_text(name)}/{_text(inner)}", array


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
            first = np.frombuffer(file.read(min(size, PROBED_ROWS * row)), dtype=np.uint8).reshape(-1, row)
            if (first[:, : len(classes)] < classes).all():
                return len(classes)
    return 0


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
    labels = _idx_labels(path)
    with _unpacked(path) as file:
        shape = _header(file)
        count, layout = images_in("", shape, np.dtype(np.uint8))
        offset = HEADER.size + 4 * len(shape)
        found = _in_order(file, layout, count) if path.endswith(GZIP) else ranges(path, file, offset, layout, count)
        for number, location in enumerate(found):
            label = Label(labels[number]) if len(labels) == count else None
            yield Record(source, f"{prefix}{number}", location, label)
        _check_end(file, offset + count * layout.size)


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


def _check_end(file: BinaryIO, end: int) -> None:
    """Check that a file ends where its header says; of a gzipped one, its checksum, too, which is read at the end."""
    file.seek(end)
    if file.read(1):
        raise Damaged(f"it goes on after the {end:,} bytes that its header announces")


def _in_order(file: BinaryIO, layout: Layout, count: int) -> Iterator[Location]:
    for number in range(count):
        data = file.read(layout.size)
        if len(data) < layout.size:
            raise Unreadable("truncated", f"of {count:,} images {number:,} are there")
        yield InMemory(layout.as_file(data))


def _idx_labels(path: str) -> bytes:
    """Return the labels of the file beside this one: `t10k-labels-idx1-ubyte` for `t10k-images-idx3-ubyte`."""
    name = base_name(path)
    labels = path[: len(path) - len(name)] + name.replace("images", "labels").replace("idx3", "idx1")
    try:
        with _unpacked(labels) as file:
            shape = _header(file)
            if len(shape) > 1 or shape[0] > LABELS_LIMIT:
                return b""
            found = file.read(shape[0])
            _check_end(file, HEADER.size + 4 + shape[0])
            return found
    except Exception:  # there is none, or it is no such file; a damaged one raises as gzip likes
        return b""
