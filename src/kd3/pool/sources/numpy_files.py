"""Images in NumPy's files: one array in a .npy, several in a .npz. Pickles in them are never loaded."""

from __future__ import annotations

import math
import struct
import warnings
import zipfile
from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.lib import format as npy

from kd3.pool.pixels import Layout, NoImages
from kd3.pool.record import InMemory, Location, Record, Unreadable, printable
from kd3.pool.sources.array_labels import read_values
from kd3.pool.sources.arrays import NamedArray, array_count, array_records
from kd3.pool.sources.containers import guarded, opened, ranges

LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip member: its sign, the lengths of the name and of the extra field


def npy_members(path: str, source: str, prefix: str, *, limit: int | None = None) -> Iterator[Record]:
    """Yield the images of an array; a damaged or unfit one gives one record that says so."""
    return guarded(_of_npy(path, source, prefix), path, source, prefix, limit)


def npz_members(path: str, source: str, prefix: str, *, limit: int | None = None) -> Iterator[Record]:
    """Yield the images of all arrays that hold some; a damaged or unfit file gives one record that says so."""
    return guarded(_of_npz(path, source, prefix), path, source, prefix, limit)


def npy_count(path: str) -> int:
    """Return how many images an array has."""
    with opened(path) as file:
        return array_count([_plain_array("", path, file)])


def npz_count(path: str) -> int:
    """Return how many images a .npz has."""
    with opened(path) as file, zipfile.ZipFile(file) as archive:
        return array_count(_arrays(path, file, archive))


def _of_npy(path: str, source: str, prefix: str) -> Iterator[Record]:
    with opened(path) as file:
        yield from array_records([_plain_array("", path, file)], source, prefix)


def _of_npz(path: str, source: str, prefix: str) -> Iterator[Record]:
    with opened(path) as file, zipfile.ZipFile(file) as archive:
        yield from array_records(_arrays(path, file, archive), source, prefix)


def _plain_array(name: str, path: str, file: BinaryIO) -> NamedArray:
    shape, fortran, dtype = _header(file)
    start = file.tell()
    values = partial(_values, file, start, shape, dtype)
    return NamedArray(name, shape, dtype, fortran, partial(ranges, path, file, start), values)


def _arrays(path: str, file: BinaryIO, archive: zipfile.ZipFile) -> list[NamedArray]:
    found = []
    for member in archive.infolist():
        if member.is_dir() or not member.filename.endswith(".npy"):
            continue
        if member.flag_bits & 1:
            raise Unreadable("encrypted", member.filename)
        name = printable(member.filename.removesuffix(".npy"))
        if member.compress_type == zipfile.ZIP_STORED:
            _seek_contents(file, member)
            found.append(_plain_array(name, path, file))
        else:
            with archive.open(member) as unpacked:
                shape, fortran, dtype = _header(cast(BinaryIO, unpacked))
            values = partial(_unpacked_values, archive, member)
            found.append(NamedArray(name, shape, dtype, fortran, partial(_unpacked, archive, member), values))
    return found


def _seek_contents(file: BinaryIO, member: zipfile.ZipInfo) -> None:
    file.seek(member.header_offset)
    sign, name_length, extra_length = LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))
    if sign != b"PK\3\4":
        raise zipfile.BadZipFile(f"no member begins where {member.filename} should")
    file.seek(name_length + extra_length, 1)


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo, layout: Layout, count: int) -> Iterator[Location]:
    with archive.open(member) as file:
        _header(cast(BinaryIO, file))
        for number in range(count):
            data = file.read(layout.size)
            if len(data) < layout.size:
                raise Unreadable("truncated", f"of {count:,} images {number:,} are there")
            yield InMemory(layout.as_file(data))
        file.read(1)  # the end is where its checksum is compared


def _values(file: BinaryIO, start: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    file.seek(start)
    return read_values(file.read(math.prod(shape) * dtype.itemsize), shape, dtype)


def _unpacked_values(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        shape, _, dtype = _header(cast(BinaryIO, file))
        return read_values(file.read(math.prod(shape) * dtype.itemsize), shape, dtype)


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether it lies in Fortran order, and dtype; the array begins where the file is then."""
    version = npy.read_magic(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers that Python 2 wrote
        if version == (1, 0):
            return npy.read_array_header_1_0(file)
        if version == (2, 0):
            return npy.read_array_header_2_0(file)
    raise NoImages(f"its header is of version {version}, which is for arrays with named fields")
