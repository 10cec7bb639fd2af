"""Lists of paths and URLs, one per line: a text, or a table with a column of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import islice

from kd3.errors import KD3Error
from kd3.pool.record import Label, Unusable
from kd3.pool.sources.containers import opened
from kd3.storage.other_files import UTF16

COLUMNS = ("path", "file", "file_path", "filepath", "file_name", "filename", "image_path", "url", "image_url", "image")
LABELS = ("label", "labels", "class", "class_name", "category", "target", "fine_label")
FIRST_BYTES = 1 << 12
FIRST_LINES = 10_000
PLAIN, WINDOWS = ("utf-8-sig", "surrogateescape"), ("utf-16", "replace")


def is_text(path: str) -> bool:
    """Return whether a file is text, not an image whose name lies; raises OSError, or as `opened_remote`."""
    with opened(path) as file:
        first = file.read(FIRST_BYTES)
        return first.startswith(UTF16) or b"\0" not in first


def listed(path: str) -> Iterator[tuple[str | Unusable, Label | None]]:
    """Yield the paths and URLs of a list, in order, as they stand there, each with its label where the list has them.

    An error in a row is yielded in its place.

    In a .csv or .tsv whose first row has one of the names of `COLUMNS` they are that column, else the first; of a .lst
    with tabs, as MXNet writes it, they are the last. Labels are a column of such a .csv or .tsv that is named as one of
    `LABELS`. Empty lines and those that begin with "#" are none.
    """
    for entry, label in _entries(path):
        if isinstance(entry, Unusable) or (entry and not entry.startswith("#")):
            yield entry, label


def check_list(path: str) -> None:
    """Check a list's first lines.

    Raises:
        KD3Error: it is empty.
    """
    if sum(1 for _ in islice(listed(path), FIRST_LINES)) == 0:
        raise KD3Error(f"{path} is a list without a path")


def _entries(path: str) -> Iterator[tuple[str | Unusable, Label | None]]:
    lower = path.partition("?")[0].lower()
    with opened(path) as file:
        is_utf16 = file.read(len(UTF16[0])) in UTF16
        file.seek(0)
        # Names need not be UTF-8.
        encoding, errors = WINDOWS if is_utf16 else PLAIN
        lines = io.TextIOWrapper(file, encoding=encoding, errors=errors, newline=None)
        if lower.endswith((".csv", ".tsv")):
            yield from _column(csv.reader(_without_nulls(lines), delimiter="\t" if lower.endswith(".tsv") else ","))
        elif lower.endswith(".lst"):
            yield from ((line.rpartition("\t")[2].strip(), None) for line in lines)
        else:
            yield from ((line.strip(), None) for line in lines)


def _column(rows: Iterator[list[str]]) -> Iterator[tuple[str | Unusable, Label | None]]:
    place: int | None = None
    labels: int | None = None
    is_first = True
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as problem:  # such as a field that never ends; the reader goes on behind it
            yield Unusable("unreadable", f"the row is no CSV: {problem}"), None
            continue
        if is_first:
            is_first = False
            names = [name.strip().lower() for name in row]
            place = next((names.index(name) for name in COLUMNS if name in names), None)
            if place is not None:
                labels = next((names.index(name) for name in LABELS if name in names), None)
                continue
        if len(row) > (place or 0):
            label = row[labels].strip() if labels is not None and len(row) > labels else ""
            yield row[place or 0].strip(), Label(name=label) if label else None


def _without_nulls(lines: Iterator[str]) -> Iterator[str]:
    return (line.replace("\0", "") for line in lines)
