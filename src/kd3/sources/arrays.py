"""Images in arrays: NumPy's files, the names of arrays, and the labels in an array beside them."""

from __future__ import annotations

import math
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.lib import format as npy

from kd3.sources.containers import LABELS_LIMIT, guarded, opened, ranges
from kd3.sources.files import words_of
from kd3.sources.record import (
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
    printable,
)

OF_IMAGES = frozenset(("x", "data", "image", "images", "img", "imgs"))
OF_LABELS = frozenset(("y", "label", "labels", "target", "targets", "class", "classes", "cls"))
WHOLE_NUMBERS, TEXT = "iu", "U"


def labels_beside(images: NamedArray, count: int, arrays: Sequence[NamedArray], *, alone: bool) -> list[Label | None]:
    """Return the label of each of an array's images; an empty list where no array, or more than one, may hold them.

    Labels are whole numbers from 0 or text, one for each image. Their array is called as that of the images is but for
    the word for it; of one array of images beside one such array the names do not matter.
    """
    fit = [array for array in arrays if array.values is not None and _is_labels(array, count)]
    named = [array for array in fit if _rest(array.name, OF_LABELS) == _rest(images.name, OF_IMAGES)]
    chosen = named if named or not alone else fit
    if len(chosen) != 1 or chosen[0].values is None:
        return []
    values = chosen[0].values().reshape(-1)
    if values.dtype.kind == TEXT:
        return [Label(name=str(value)) if value else None for value in values.tolist()]
    return [Label(value) if value >= 0 else None for value in values.tolist()]


def _is_labels(array: NamedArray, count: int) -> bool:
    is_small = array.dtype.kind in WHOLE_NUMBERS + TEXT and count * array.dtype.itemsize <= LABELS_LIMIT
    return is_small and array.shape in ((count,), (count, 1))


def _rest(name: str, of: frozenset[str]) -> frozenset[str] | None:
    """Return the words of a name without those that say what it holds; None where it says nothing of it.

    >>> sorted(_rest("x_test", OF_IMAGES)), _rest("x_test", OF_LABELS)
    (['test'], None)
    """
    words = set(words_of(name))
    return frozenset(words - of) if words & of else None


def read_values(data: bytes, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> np.ndarray:
    """Return an array of plain values from its bytes.

    Raises:
        ValueError: there are too few.
    """
    count = int(np.prod(shape, dtype=np.int64))
    return np.frombuffer(data, dtype=dtype, count=count).reshape(shape)


Images = Callable[[Layout, int], Iterator[Location]]


@dataclass(frozen=True, slots=True)
class NamedArray:
    """An array that is still where it was found."""

    name: str  # "" where it is the only one; "train/data" in a dictionary of dictionaries
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    images: Images  # the images of a layout, so many
    values: Callable[[], np.ndarray] | None = None  # all of it, for arrays that may be labels

    @property
    def is_metadata(self) -> bool:
        """Say whether it has too few axes for images: labels, a mean."""
        return len(self.shape) < 3


def array_records(arrays: Sequence[NamedArray], source: str, prefix: str) -> Iterator[Record]:
    """Yield the images of arrays, array by array.

    A key is the image's number, behind the array's name where several hold images. Beside arrays of images, those of
    one or two axes are sidecars, others a refusal each.

    Raises:
        NoImages: none of the arrays holds images.
        Unreadable: images are missing at the end.
    """
    fit = [_layout(array) for array in arrays]
    if all(isinstance(found, NoImages) for found in fit):
        raise NoImages(
            "; ".join(_described(array, found) for array, found in zip(arrays, fit, strict=True)) or "no array is in it"
        )
    alone = sum(not isinstance(found, NoImages) for found in fit) == 1
    for array, found in zip(arrays, fit, strict=True):
        if isinstance(found, NoImages):
            refusal = Unusable(SIDECAR) if array.is_metadata else Unusable("no images", str(found))
            yield Record(source, prefix + array.name, refusal)
            continue
        count, layout = found
        within = prefix if alone or not array.name else f"{prefix}{array.name}/"
        labels = labels_beside(array, count, arrays, alone=alone)
        for number, location in enumerate(array.images(layout, count)):
            yield Record(source, f"{within}{number}", location, labels[number] if labels else None)


def array_count(arrays: Sequence[NamedArray]) -> int:
    """Return about how many records `array_records` yields."""
    fit = [_layout(array) for array in arrays]
    return sum(1 if isinstance(found, NoImages) else found[0] for found in fit)


def _layout(array: NamedArray) -> tuple[int, Layout] | NoImages:
    try:
        return images_in(array.name.rpartition("/")[2], array.shape, array.dtype, fortran=array.fortran)
    except NoImages as problem:
        return problem


def _described(array: NamedArray, found: object) -> str:
    return f"{array.name}: {found}" if array.name else str(found)


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
