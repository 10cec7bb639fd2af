"""Labelled images of a source: the only reader of labels.

In this order: rows that carry a label (a column of a table, CIFAR's batches, idx, a list), `.cls` and `.json` files, a
table of file and label beside the images, class folders. Archives and splits are no class folders.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from kd3.class_names import class_name, some
from kd3.errors import KD3Error
from kd3.pool.annotations import labels_by_file, labels_by_sample, sample
from kd3.pool.reasons import SIDECAR
from kd3.pool.record import Label, Record, Unusable
from kd3.pool.sources import Archive, contents, find
from kd3.pool.sources.batches import batch_in_archive
from kd3.pool.sources.containers import unusable
from kd3.pool.sources.names import archive_kind, shown, words_of

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
    told_by: str  # origin of the labels, in words
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
    labels, told_by = _labels(source, images, sidecars)
    kept = [(record, label) for record, label in zip(images, labels, strict=True) if label is not None]
    unlabelled = BESIDE if told_by == FOLDERS else NO_LABEL
    left_out = Counter(
        record.location.reason if isinstance(record.location, Unusable) else unlabelled
        for record, label in zip(images, labels, strict=True)
        if label is None
    )
    return LabelledFiles([one for one, _ in kept], [one for _, one in kept], told_by, left_out, chosen)


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
        yield from batch_in_archive(record.location.read(), named[CIFAR[batch]].location.read(), record.source, "")
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
        return [record.label for record in images], "labels in the data"
    by_sample = labels_by_sample(sidecars)
    found = [by_sample.get(sample(record.key)) for record in images] if by_sample else []
    if any(found):
        return found, "labels of the .cls or .json files"
    table, by_file = labels_by_file(sidecars, {record.key for record in images})
    if 2 * len(by_file) > len(images):
        return [by_file.get(record.key) for record in images], f"labels in {PurePosixPath(table).name}"
    return _of_folders(source, images), FOLDERS


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
