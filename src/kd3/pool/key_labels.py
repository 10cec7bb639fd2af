"""Labels of a pool of labelled data: from the folders in its keys, else from its sources."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from kd3.errors import KD3Error
from kd3.pool.class_matching import Matching, match_classes
from kd3.pool.labelled_files import FOLDERS, class_folder, labelled_files
from kd3.pool.record import Label


def labels_of_pool(
    rows: Callable[[], Iterable[tuple[str, str]]], class_names: Sequence[str], *, where: str
) -> tuple[np.ndarray, Matching]:
    """Return the labels of images, as indices of class names (N,) int64, and their matching to classes.

    An image's class is the last folder in its key (`train/ship/0001.jpg` is a ship). If keys have no folders (rows of
    tables and batches), the labels come from the sources.

    Args:
        rows: yields source and key of each image; called repeatedly.
        where: the pool, for messages.

    Raises:
        KD3Error: an image has no label, or one that is no class.
    """
    lost = next((key for _, key in rows() if not class_folder(key)[0]), None)
    if lost is None:
        folders = (Label(name=class_folder(key)[0]) for _, key in rows())
        return _matched(folders, class_names, where=where, told_by=FOLDERS)
    known: dict[tuple[str, str], Label] = {}
    for source in {source: None for source, _ in rows()}:
        try:
            found = labelled_files(source, every_split=True)
        except KD3Error as problem:
            raise KD3Error(
                f"image {lost!r} of {where} lies in no folder of a class, and its source says no label: {problem}"
            ) from None
        known |= {(one.source, one.key): label for one, label in zip(found.records, found.labels, strict=True)}
    missing = next((key for source, key in rows() if (source, key) not in known), None)
    if missing is not None:
        raise KD3Error(f"image {missing!r} of {where} lies in no folder of a class, and its source has no label of it")
    return _matched((known[row] for row in rows()), class_names, where=where, told_by="labels in the data")


def _matched(
    labels: Iterable[Label], class_names: Sequence[str], *, where: str, told_by: str
) -> tuple[np.ndarray, Matching]:
    numbers: dict[Label, int] = {}  # in the order of their first images
    places = np.fromiter((numbers.setdefault(label, len(numbers)) for label in labels), dtype=np.int64)
    matching = match_classes(numbers, class_names, where=where, told_by=told_by)
    return np.array([matching.of(label) for label in numbers], dtype=np.int64)[places], matching
