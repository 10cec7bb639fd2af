"""Labels in an array beside that of the images: `y_test` of `x_test`, `test_labels` of `test_images`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kd3.pool.record import Label
from kd3.pool.sources.containers import LABELS_LIMIT
from kd3.pool.sources.names import words_of

if TYPE_CHECKING:
    from kd3.pool.sources.arrays import NamedArray

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
