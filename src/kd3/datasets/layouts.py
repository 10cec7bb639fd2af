"""Layouts of published files, packed or unpacked: each image with its split and class."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from kd3.errors import KD3Error
from kd3.pool.labelled_files import class_folder
from kd3.pool.reasons import SIDECAR
from kd3.pool.record import InFile, Location, Unreadable, Unusable
from kd3.pool.sources import records
from kd3.pool.sources.batches import batch_in_archive
from kd3.pool.sources.folder import walk
from kd3.pool.sources.idx import idx_members

TRAIN, TEST = "train", "test"
CIFAR_BATCHES = {"test_batch": TEST, "test": TEST, "train": TRAIN, **{f"data_batch_{n}": TRAIN for n in range(1, 6)}}
CIFAR_META = ("batches.meta", "meta")
IDX = {TRAIN: "train-images", TEST: "t10k-images"}
ANNOTATIONS = "val_annotations.txt"
TINY_TRAIN = re.compile(r"(?:^|/)train/([^/]+)/images/[^/]+$")
TINY_VAL = re.compile(r"(?:^|/)val/images/([^/]+)$")


class Example(NamedTuple):
    """An image of a data set."""

    split: str  # TRAIN or TEST
    label: str  # the name of its class
    image: Location  # of a picture's bytes


def cifar(place: Path) -> Iterator[Example]:
    """Yield the images of CIFAR-10 or CIFAR-100, python version: the archive, or its unpacked folder."""
    held = {}
    for key, location in _files(place):
        name = key.rpartition("/")[2]
        if name in CIFAR_BATCHES or name in CIFAR_META:
            held[name] = _read(place, key, location)
    meta = next((held[name] for name in CIFAR_META if name in held), None)
    if meta is None:
        raise KD3Error(f"{place} is no python version of CIFAR: it has no {' or '.join(CIFAR_META)}")
    for name in sorted(held.keys() - set(CIFAR_META)):
        try:
            found = list(batch_in_archive(held[name], meta, str(place), ""))
        except Exception as problem:  # readers raise many errors on damage
            raise KD3Error(f"{place} is damaged: {name}: {problem}") from None
        for record in found:
            if record.label is None or record.label.name is None:
                raise KD3Error(f"{place} is no python version of CIFAR: {name} says no class of its images")
            yield Example(CIFAR_BATCHES[name], record.label.name, record.location)


def idx(place: Path) -> Iterator[Example]:
    """Yield the images of MNIST: the folder with the four idx files, plain or gzipped."""
    for split, start in IDX.items():
        found = [path for path in (place / f"{start}-idx3-ubyte{end}" for end in ("", ".gz")) if path.is_file()]
        if not found:
            raise KD3Error(f"{place} has no {start}-idx3-ubyte, plain or .gz")
        for record in idx_members(str(found[0]), str(place), ""):
            if record.label is None and not isinstance(record.location, Unusable):
                raise KD3Error(f"{found[0]} has no labels beside it, or not as many as it has images")
            check(place, record.key, record.location)
            assert record.label is not None
            yield Example(split, str(record.label.number), record.location)


def folders(place: Path) -> Iterator[Example]:
    """Yield the images of `train/CLASS` and `test/CLASS`, as CINIC-10 has them; `valid` is skipped."""
    for key, location in _files(place):
        label, above = class_folder(key)
        split = above.rpartition("/")[2]
        if split in (TRAIN, TEST):
            yield Example(split, label, location)


def tinyimagenet(place: Path) -> Iterator[Example]:
    """Yield the images of TinyImageNet: `train/CLASS/images`, and as a test set `val`, whose labels are published."""
    annotations = next((found for found in _files(place) if found[0].endswith(f"val/{ANNOTATIONS}")), None)
    if annotations is None:
        raise KD3Error(f"{place} is not TinyImageNet: it has no val/{ANNOTATIONS}")
    lines = _read(place, *annotations).decode("utf-8", "replace").splitlines()
    labels = {columns[0]: columns[1] for line in lines if len(columns := line.split("\t")) > 1}
    for key, location in _files(place):
        if (train := TINY_TRAIN.search(key)) is not None:
            yield Example(TRAIN, train[1], location)
        elif (test := TINY_VAL.search(key)) is not None:
            if test[1] not in labels:
                raise KD3Error(f"{place} is damaged: val/{ANNOTATIONS} says no class of {test[1]}")
            yield Example(TEST, labels[test[1]], location)


LAYOUTS: dict[str, Callable[[Path], Iterator[Example]]] = {
    "cifar": cifar,
    "idx": idx,
    "folders": folders,
    "tinyimagenet": tinyimagenet,
}


def _files(place: Path) -> Iterator[tuple[str, Location]]:
    """Yield key and location of the files in an archive or a folder; batches stay whole.

    Raises:
        KD3Error: the archive is damaged.
    """
    if place.is_dir():
        for path, key, what in walk(str(place)):
            if what == "file":
                yield key, InFile(path)
        return
    for record in records([str(place)]):
        location = record.location
        if isinstance(location, Unusable) and location.contents is not None:
            location = location.contents  # of a sidecar
        check(place, record.key, location)
        yield record.key, location


def check(place: Path, key: str, location: Location) -> None:
    """Refuse unreadable records; sidecars are skipped.

    Raises:
        KD3Error: the source is damaged there.
    """
    if isinstance(location, Unusable) and location.reason != SIDECAR:
        raise damaged(place, key, location.reason, location.detail)


def damaged(place: Path, key: str, reason: str, detail: str) -> KD3Error:
    """Return the error for a damaged source."""
    within = "" if key == place.name else f"{key}: "
    return KD3Error(f"{place} is damaged: {within}{reason}" + (f" ({detail})" if detail else ""))


def _read(place: Path, key: str, location: Location) -> bytes:
    try:
        return location.read()
    except Unreadable as problem:
        raise damaged(place, key, problem.reason, problem.detail) from None
