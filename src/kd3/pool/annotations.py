"""Labels in files beside the images: `KEY.cls`, `KEY.json`, and tables of file and label."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from kd3.pool.record import Label, Record, Unreadable, Unusable
from kd3.pool.sources.lists import COLUMNS
from kd3.pool.sources.lists import LABELS as LABEL_COLUMNS

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
    file is meant relative to the table's folder, or to that of images below it.
    """
    best: tuple[str, dict[str, Label]] = ("", {})
    for record in sidecars:
        rows = dict(_rows(record))
        if not rows:
            continue
        folder = record.key.rpartition("/")[0]
        found = {}
        for key in keys:
            inside = key.removeprefix(folder + "/") if folder else key
            label = rows.get(inside) or rows.get(inside.rpartition("/")[2])
            if label is not None and (not folder or key.startswith(folder + "/")):
                found[key] = label
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
