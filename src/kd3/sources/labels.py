"""Labels of images: from folders, arrays, tables and files beside them. The one place that reads labels.

Labelled images of a source: the only reader of labels. In this order: rows that carry a label (a column of a table,
CIFAR's batches, idx, a list), `.cls` and `.json` files, a table of file and label beside the images, class folders.
Archives and splits are no class folders.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np

from kd3.config.records import class_name, some
from kd3.runtime.errors import KD3Error
from kd3.sources.batches import batch_in_archive, meta_names
from kd3.sources.class_matching import Matching, match_classes
from kd3.sources.containers import unusable
from kd3.sources.files import archive_kind, shown, words_of
from kd3.sources.finding import Archive, contents, find
from kd3.sources.locations import COLUMNS
from kd3.sources.locations import LABELS as LABEL_COLUMNS
from kd3.sources.record import SIDECAR, InFile, Label, Record, Unreadable, Unusable
from kd3.sources.remote import Remote

JSON_FIELDS = ("label", "cls", "class", "class_name", "category")
TINY_IMAGENET = "val_annotations.txt"  # columns: file, class, four sides of a box
SMALL = 1 << 20  # bytes of a .json of one image


def labels_by_sample(sidecars: Sequence[Record]) -> dict[str, Label]:
    """Return the labels of `.cls` and `.json` files, by sample (see `sample`)."""
    found: dict[str, Label] = {}
    for record in sidecars:
        ending = PurePosixPath(record.key).suffix.lower()
        if ending not in (".cls", ".json") or (ending == ".json" and sample(record.key) in found):
            continue
        label = _of_text(_text(record)) if ending == ".cls" else _of_json(_text(record))
        if label is not None:
            found[sample(record.key)] = label
    return found


def sample(key: str) -> str:
    """Return a file's key up to the first dot of its name: the files of one sample share it, as in WebDataset."""
    folder, slash, name = key.rpartition("/")
    return folder + slash + name.partition(".")[0]


def labels_by_file(sidecars: Sequence[Record], keys: set[str]) -> tuple[str, dict[str, Label]]:
    """Return the key of the table that labels most images, and its labels; `""` if there is none.

    Tables are .csv and .tsv files with a column of files and one of labels, and TinyImageNet's `val_annotations.txt`. A
    file is meant relative to the table's folder, or by its name only, if no other file below that folder has it. A file
    in several rows with different labels has none.
    """
    best: tuple[str, dict[str, Label]] = ("", {})
    for record in sidecars:
        rows: dict[str, Label | None] = {}
        for file, label in _rows(record):
            rows[file] = label if rows.get(file, label) == label else None
        if not rows:
            continue
        folder = record.key.rpartition("/")[0]
        below = {key: key.removeprefix(folder + "/") for key in keys if not folder or key.startswith(folder + "/")}
        named = Counter(inside.rpartition("/")[2] for inside in below.values())
        found = {}
        for key, inside in below.items():
            name = inside.rpartition("/")[2]
            known = rows.get(inside) or (rows.get(name) if named[name] == 1 else None)
            if known is not None:
                found[key] = known
        if len(found) > len(best[1]):
            best = (record.key, found)
    return best


def _rows(record: Record) -> Iterator[tuple[str, Label]]:
    lower = record.key.lower()
    if PurePosixPath(lower).name == TINY_IMAGENET:
        for line in _text(record).splitlines():
            columns = line.split("\t")
            if len(columns) >= 2:
                yield columns[0].strip(), Label(name=columns[1].strip())
    if not lower.endswith((".csv", ".tsv")):
        return
    lines = _text(record).splitlines()
    try:
        rows = csv.reader(lines, delimiter="\t" if lower.endswith(".tsv") else ",")
        names = [name.strip().lower() for name in next(rows, [])]
        file = next((names.index(name) for name in COLUMNS if name in names), None)
        label = next((names.index(name) for name in LABEL_COLUMNS if name in names), None)
        for row in rows if file is not None and label is not None else ():
            if len(row) > max(file or 0, label or 0) and row[label or 0].strip():
                yield row[file or 0].strip().removeprefix("./"), Label(name=row[label or 0].strip())
    except csv.Error:
        return


def _text(record: Record) -> str:
    """Return a sidecar's text; None if it cannot be read."""
    assert isinstance(record.location, Unusable)
    try:
        data = record.location.contents.read() if record.location.contents is not None else b""
        return data.decode("utf-8-sig")
    except (OSError, Unreadable, UnicodeDecodeError):
        return ""


def _of_text(text: str) -> Label | None:
    words = text.strip()
    if words.isascii() and words.isdecimal() and len(words) < 10:
        return Label(int(words))
    return Label(name=words) if words and "\n" not in words else None


def _of_json(text: str) -> Label | None:
    try:
        values = json.loads(text) if len(text) <= SMALL else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    for name in JSON_FIELDS:
        value = values.get(name)
        if type(value) is int and value >= 0:
            return Label(value)
        if isinstance(value, str) and value:
            return _of_text(value)
    return None


FOLDERS = "class folders"
NO_LABEL = "without a label"
BESIDE = "beside the class folders"
IMAGES = "images"  # a folder in a class folder, or of a split without classes
TEST, VALIDATION, TRAIN = "test", "validation", "train"
_SPLITS = {
    **dict.fromkeys(("test", "testing", "t10k", "eval"), TEST),
    **dict.fromkeys(("val", "valid", "validation", "dev"), VALIDATION),
    **dict.fromkeys(("train", "training", "data"), TRAIN),
}
CIFAR = {"test_batch": "batches.meta", "test": "meta"}  # the test batch, and the file with the names of the classes
KNOWN = (
    "a label column of a parquet or Arrow file, .cls or .json files, CIFAR's batches, idx files, arrays of labels in a "
    ".npz, a CSV of file and label (docs/labels.md)"
)


@dataclass(frozen=True)
class LabelledFiles:
    """Files of a source that have a label."""

    records: list[Record]
    labels: list[Label]
    label_origin: str  # origin of the labels, in words
    left_out: Counter[str] = field(default_factory=Counter)  # files, by reason
    split: str = ""  # the chosen one of several


def labelled_files(source: str, *, every_split: bool = False) -> LabelledFiles:
    """Return a source's labelled files; if its archives are several splits, those of the test split.

    Raises:
        KD3Error: the source does not exist, or has no labels.
    """
    images: list[Record] = []
    sidecars: list[Record] = []
    splits: list[str] = []
    for found in find([source]):
        split = _split_of(found.prefix or found.path) if isinstance(found, Archive) else ""
        members = contents(found)
        if isinstance(found, Archive) and found.kind in ("tar", "zip") and not every_split:
            members = _of_cifar(list(members))
        for record in members:
            if not (isinstance(record.location, Unusable) and record.location.reason == SIDECAR):
                images.append(record)
                # Of a .npz each array may be another split.
                within = isinstance(found, Archive) and found.kind == "npz" and _split_of(record.key)
                splits.append(within or split)
            elif record.location.contents is not None:
                sidecars.append(record)
    chosen = "" if every_split else _chosen(set(splits))
    if chosen:
        images = [record for record, split in zip(images, splits, strict=True) if split == chosen]
    labels, label_origin = _labels(source, images, sidecars)
    kept = [(record, label) for record, label in zip(images, labels, strict=True) if label is not None]
    unlabelled = BESIDE if label_origin == FOLDERS else NO_LABEL
    left_out = Counter(
        record.location.reason if isinstance(record.location, Unusable) else unlabelled
        for record, label in zip(images, labels, strict=True)
        if label is None
    )
    return LabelledFiles([one for one, _ in kept], [one for _, one in kept], label_origin, left_out, chosen)


def _of_cifar(members: list[Record]) -> Iterator[Record]:
    """Yield the images of the test batch, if an archive's members are CIFAR's; otherwise all members.

    Raises:
        KD3Error: the test batch is damaged.
    """
    named = {record.key.rpartition("/")[2]: record for record in members}
    batch = next((name for name, meta in CIFAR.items() if name in named and meta in named), None)
    if batch is None:
        yield from members
        return
    record = named[batch]
    try:
        names = meta_names(named[CIFAR[batch]].location.read())
        yield from batch_in_archive(record.location.read(), names, record.source, "")
    except Exception as problem:  # readers raise many errors on damage
        raise KD3Error(
            f"{record.source} holds {record.key}, which cannot be read: {unusable(problem).detail}"
        ) from None


def class_folder(key: str) -> tuple[str, str]:
    """Return the class folder of a key and the path above it; archives do not count.

    A folder `images` in it, as TinyImageNet's training classes have one, is skipped.

    >>> class_folder("shards/0.tar/ship/7.png"), class_folder("0.tar/7.png"), class_folder("train/n014/images/7.png")
    (('ship', 'shards'), ('', ''), ('n014', 'train'))
    """
    parts = [part for part in key.split("/")[:-1] if archive_kind(part) is None]
    if len(parts) > 1 and parts[-1] == IMAGES and parts[-2].lower() not in _SPLITS:
        parts.pop()
    return (class_name(parts[-1]), "/".join(parts[:-1])) if parts else ("", "")


def _labels(source: str, images: Sequence[Record], sidecars: Sequence[Record]) -> tuple[list[Label | None], str]:
    """Return the label of each image, and its source."""
    if any(record.label is not None for record in images):
        return _of_rows(images), "labels in the data"
    by_sample = labels_by_sample(sidecars)
    found = [by_sample.get(sample(record.key)) for record in images] if by_sample else []
    if any(found):
        return found, "labels of the .cls or .json files"
    table, by_file = labels_by_file(sidecars, {record.key for record in images})
    if 2 * len(by_file) > len(images):
        return [by_file.get(record.key) for record in images], f"labels in {PurePosixPath(table).name}"
    return _of_folders(source, images), FOLDERS


def _of_rows(images: Sequence[Record]) -> list[Label | None]:
    """Return the label that each row gives; none for rows that give one file different labels."""
    found: dict[InFile | Remote, Label | None] = {}
    for record in images:
        if isinstance(record.location, (InFile, Remote)):
            label = found.setdefault(record.location, record.label)
            found[record.location] = label if label == record.label else None
    return [found[one.location] if isinstance(one.location, (InFile, Remote)) else one.label for one in images]


def _of_folders(source: str, images: Sequence[Record]) -> list[Label | None]:
    """Return the folder of each image as its label; none for those beside the class folders.

    Raises:
        KD3Error: there are no class folders, or images lie at several depths, so that a folder's meaning is unclear.
    """
    folders = [class_folder(record.key) for record in images]
    roots = sorted({above for name, above in folders if name})
    if not roots:
        raise KD3Error(
            f"{shown(source)} has no class folders (one folder of images per class), nor labels that kd3 reads in "
            f"another form: {KNOWN}"
        )
    if len(roots) > 1:
        below = {PurePosixPath(root).parts[-1].lower() for root in roots if root}
        split = " (they look like splits: test on one)" if below and below <= set(_SPLITS) else ""
        raise KD3Error(
            f"{shown(source)} has images at several places ({some([root or '.' for root in roots])}); give the one "
            f"folder that holds the class folders{split}"
        )
    return [Label(name=name) if name else None for name, _ in folders]


def _split_of(path: str) -> str:
    """Return the split that an archive's path names; "" if none."""
    for part in reversed(path.rstrip("/").split("/")[-3:]):
        words = words_of(part) if "t10k" not in part.lower() else ["t10k"]
        named = [_SPLITS[word] for word in words if word in _SPLITS and (word != "data" or "batch" in words)]
        if named:
            return named[0]
    return ""


def _chosen(splits: set[str]) -> str:
    """Return the test split, if there are several."""
    named = splits - {""}
    return next((split for split in (TEST, VALIDATION) if split in named and len(named) > 1), "")


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
        return _matched(folders, class_names, where=where, label_origin=FOLDERS)
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
    return _matched((known[row] for row in rows()), class_names, where=where, label_origin="labels in the data")


def _matched(
    labels: Iterable[Label], class_names: Sequence[str], *, where: str, label_origin: str
) -> tuple[np.ndarray, Matching]:
    numbers: dict[Label, int] = {}  # in the order of their first images
    places = np.fromiter((numbers.setdefault(label, len(numbers)) for label in labels), dtype=np.int64)
    matching = match_classes(numbers, class_names, where=where, label_origin=label_origin)
    return np.array([matching.of(label) for label in numbers], dtype=np.int64)[places], matching
