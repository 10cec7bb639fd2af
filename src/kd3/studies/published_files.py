"""Published files: where they lie, whether they are whole, and what they hold."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from kd3.config.published import DataSet, Published
from kd3.runtime import console
from kd3.runtime.errors import KD3Error, in_words
from kd3.sources.batches import batch_in_archive, idx_members, meta_names
from kd3.sources.files import is_sidecar, walk
from kd3.sources.finding import records
from kd3.sources.labels import class_folder
from kd3.sources.record import SIDECAR, InFile, Location, Unreadable, Unusable
from kd3.sources.remote import BLOCK, opened_remote

UNCHECKED = "--no-check takes files as they are"
PART = ".part"  # suffix of an incomplete download


def found(dataset: DataSet, place: Path) -> list[Path]:
    """Return the published archives at a place: the file itself, or those in the folder; none if it is unpacked.

    Raises:
        KD3Error: there are none, or some archives are missing.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise KD3Error(f"{place} does not exist; put {_names(dataset)} there, or add --download")
    there = [place / file.name for file in dataset.files if (place / file.name).is_file()]
    if there and len(there) < len(dataset.files):
        missing = [file.name for file in dataset.files if place / file.name not in there]
        raise KD3Error(f"{place} has no {', '.join(missing)}; put it there, or add --download")
    return there


def check_files(dataset: DataSet, files: list[Path], place: Path) -> None:
    """Compare files with the published checksums, if known; in an unpacked folder, compare what it must have.

    Raises:
        KD3Error: one is missing or differs.
    """
    known = {file.name: file.md5 for file in dataset.files if file.md5 is not None}
    only = next(iter(known.values())) if len(dataset.files) == len(known) == 1 else None
    expected: dict[Path, str | None] = {path: known.get(path.name, only) for path in files}
    if not files:
        for name, unpacked in dataset.unpacked.items():
            named = [path for path in place.rglob(name) if path.is_file()]
            if not named:
                raise KD3Error(
                    f"{place} is not {dataset.title} as its authors publish it: it has no {name} ({UNCHECKED})"
                )
            expected |= dict.fromkeys(named, unpacked)
    for path, md5 in expected.items():
        if md5 is None:
            console.info(
                f"no checksum of {path.name} is published that kd3 knows; its contents are checked as they come"
            )
        elif (own := md5_of(path)) != md5:
            raise KD3Error(
                f"{path} is not the published file: its MD5 is {own}, not {md5}; it is damaged, half, or another one "
                f"({UNCHECKED})"
            )


def fetch(file: Published, folder: Path) -> None:
    """Download a published file into a folder if it is missing; an interrupted download is resumed.

    The file gets its name once it is complete and its checksum correct.

    Raises:
        KD3Error: it cannot be reached, or differs from the published file.
        OSError: it cannot be written.
    """
    path, part = folder / file.name, folder / (file.name + PART)
    if path.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with opened_remote(file.url) as source, part.open("ab") as target:
            size = source.seek(0, os.SEEK_END)
            done = min(target.tell(), size)
            target.truncate(done)
            source.seek(done)
            with console.progress("fetching", size, "bytes", done=done) as bar:
                while data := source.read(BLOCK):
                    target.write(data)
                    bar.advance(len(data), file.name)
            os.fsync(target.fileno())
    except Unreadable as problem:
        raise KD3Error(
            f"{file.url} cannot be fetched: {problem.detail or problem.reason}; the same command goes on from what is "
            f"there, or put {file.name} into {folder} yourself"
        ) from None
    if file.md5 is not None and (own := md5_of(part)) != file.md5:
        part.unlink()
        raise KD3Error(f"{file.url} is not the published file: its MD5 is {own}, not {file.md5}; it was removed")
    part.replace(path)


def md5_of(path: Path) -> str:
    """Return the MD5 of a file, in hex: the published checksum, which detects damage, not forgery."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as handle:
        while data := handle.read(BLOCK):
            digest.update(data)
    return digest.hexdigest()


def _names(dataset: DataSet) -> str:
    return ", ".join(file.name for file in dataset.files)


TRAIN, TEST = "train", "test"
CIFAR10_META, CIFAR100_META = "batches.meta", "meta"
CIFAR10_BATCHES = {**{f"data_batch_{number}": TRAIN for number in range(1, 6)}, "test_batch": TEST}
CIFAR100_BATCHES = {"train": TRAIN, "test": TEST}
IDX = {TRAIN: "train-images", TEST: "t10k-images"}
ANNOTATIONS = "val_annotations.txt"
TINY_TRAIN = re.compile(r"(?:^|/)train/([^/]+)/images/[^/]+$")
TINY_VAL = re.compile(r"(?:^|/)val/images/([^/]+)$")


class Example(NamedTuple):
    """An image of a data set."""

    split: str  # TRAIN or TEST
    label: str  # the name of its class
    image: Location  # of a picture's bytes
    key: str  # its place in the source


def cifar(place: Path, *, title: str, meta: str, batches: Mapping[str, str]) -> Iterator[Example]:
    """Yield the images of CIFAR-10 or CIFAR-100, python version: the archive, or its unpacked folder.

    `meta` is the file with the names of the classes, `batches` has the split of each batch by its name.
    """
    held = {}
    for key, location in _files(place):
        name = key.rpartition("/")[2]
        if name in batches or name == meta:
            held[name] = _read(place, key, location)
    if meta not in held:
        raise KD3Error(f"{place} is no python version of {title}: it has no {meta}")
    with _damage_in(place, meta):
        names = meta_names(held[meta])
    for name in sorted(held.keys() - {meta}):
        with _damage_in(place, name):
            found = list(batch_in_archive(held[name], names, str(place), ""))
        for record in found:
            if record.label is None or record.label.name is None:
                raise KD3Error(f"{place} is no python version of {title}: {name} says no class of its images")
            yield Example(batches[name], record.label.name, record.location, f"{name}/{record.key}")


@contextmanager
def _damage_in(place: Path, name: str) -> Iterator[None]:
    """Convert the many errors of readers of a damaged file to one sentence."""
    try:
        yield
    except Exception as problem:
        raise KD3Error(f"{place} is damaged: {name}: {in_words(problem)}") from None


def idx(place: Path) -> Iterator[Example]:
    """Yield the images of MNIST: the folder with the four idx files, plain or gzipped."""
    if place.is_file():
        raise KD3Error(f"{place} is one of four files that belong together; give the folder that holds them")
    for split, start in IDX.items():
        # First the published file, whose checksum was compared, if one was.
        found = [path for path in (place / f"{start}-idx3-ubyte{end}" for end in (".gz", "")) if path.is_file()]
        if not found:
            raise KD3Error(f"{place} has no {start}-idx3-ubyte, plain or .gz")
        for record in idx_members(str(found[0]), str(place), ""):
            if record.label is None and not isinstance(record.location, Unusable):
                raise KD3Error(f"{found[0]} has no labels beside it, or not as many as it has images")
            check_location(place, record.key, record.location)
            assert record.label is not None
            yield Example(split, str(record.label.number), record.location, f"{found[0].name}/{record.key}")


def folders(place: Path) -> Iterator[Example]:
    """Yield the images of `train/CLASS` and `test/CLASS`, as CINIC-10 has them; `valid` is skipped."""
    for key, location in _files(place):
        label, above = class_folder(key)
        split = above.rpartition("/")[2]
        if split in (TRAIN, TEST) and not is_sidecar(key):
            yield Example(split, label, location, key)


def tinyimagenet(place: Path) -> Iterator[Example]:
    """Yield the images of TinyImageNet: `train/CLASS/images`, and as a test set `val`, whose labels are published."""
    annotations = next((found for found in _files(place) if found[0].endswith(f"val/{ANNOTATIONS}")), None)
    if annotations is None:
        raise KD3Error(f"{place} is not TinyImageNet: it has no val/{ANNOTATIONS}")
    lines = _read(place, *annotations).decode("utf-8", "replace").splitlines()
    labels = {columns[0]: columns[1] for line in lines if len(columns := line.split("\t")) > 1}
    for key, location in _files(place):
        if (train := TINY_TRAIN.search(key)) is not None:
            yield Example(TRAIN, train[1], location, key)
        elif (test := TINY_VAL.search(key)) is not None:
            if test[1] not in labels:
                raise KD3Error(f"{place} is damaged: val/{ANNOTATIONS} says no class of {test[1]}")
            yield Example(TEST, labels[test[1]], location, key)


LAYOUTS: dict[str, Callable[[Path], Iterator[Example]]] = {
    "cifar10": partial(cifar, title="CIFAR-10", meta=CIFAR10_META, batches=CIFAR10_BATCHES),
    "cifar100": partial(cifar, title="CIFAR-100", meta=CIFAR100_META, batches=CIFAR100_BATCHES),
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
        check_location(place, record.key, location)
        yield record.key, location


def check_location(place: Path, key: str, location: Location) -> None:
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
