"""Arrays of images under a name each, as NumPy files and batch files hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kd3.pool.pixels import Layout, NoImages, images_in
from kd3.pool.reasons import SIDECAR
from kd3.pool.record import Location, Record, Unusable
from kd3.pool.sources.array_labels import labels_beside

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
            "; ".join(_told(array, found) for array, found in zip(arrays, fit, strict=True)) or "no array is in it"
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


def _told(array: NamedArray, found: object) -> str:
    return f"{array.name}: {found}" if array.name else str(found)
