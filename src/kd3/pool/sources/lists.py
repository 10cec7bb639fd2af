"""Lists of paths and URLs, one a line: a text, or a table with a column of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice

from kd3.errors import KD3Error
from kd3.pool.record import Label, Unreadable
from kd3.pool.remote import filesystem, is_remote, protocol
from kd3.pool.sources.containers import opened

COLUMNS = ("path", "file", "file_path", "filepath", "file_name", "filename", "image_path", "url", "image_url", "image")
LABELS = ("label", "labels", "class", "class_name", "category", "target", "fine_label")
FIRST_BYTES = 1 << 12
FIRST_LINES = 10_000


def is_text(path: str) -> bool:
    """Say whether a file is text, not an image whose name lies; raises OSError, or as `opened_remote`."""
    with opened(path) as file:
        return b"\0" not in file.read(FIRST_BYTES)


def listed(path: str) -> Iterator[tuple[str, Label | None]]:
    """Yield the paths and URLs of a list, in order, as they stand there, each with its label where the list has them.

    In a .csv or .tsv whose first row has one of the names of `COLUMNS` they are that column, else the first; of a .lst
    with tabs, as MXNet writes it, they are the last. Labels are a column of such a .csv or .tsv that is named as one of
    `LABELS`. Empty lines and those that begin with "#" are none.

    Raises:
        KD3Error: the package for a URL's protocol is missing; one sentence is better than a row of each line.
    """
    known: set[str] = set()
    for entry, label in _entries(path):
        if entry and not entry.startswith("#"):
            if is_remote(entry) and protocol(entry) not in known:
                known.add(protocol(entry))
                with suppress(Unreadable):  # what else is wrong with it costs this line alone
                    filesystem(entry)
            yield entry, label


def check_list(path: str) -> None:
    """Look at a list's first lines.

    Raises:
        KD3Error: it is empty, or as `listed`.
    """
    if sum(1 for _ in islice(listed(path), FIRST_LINES)) == 0:
        raise KD3Error(f"{path} is a list without a path")


def _entries(path: str) -> Iterator[tuple[str, Label | None]]:
    lower = path.partition("?")[0].lower()
    with opened(path) as file:
        # Names need not be UTF-8.
        lines = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline=None)
        if lower.endswith((".csv", ".tsv")):
            yield from _column(csv.reader(_without_nulls(lines), delimiter="\t" if lower.endswith(".tsv") else ","))
        elif lower.endswith(".lst"):
            yield from ((line.rpartition("\t")[2].strip(), None) for line in lines)
        else:
            yield from ((line.strip(), None) for line in lines)


def _column(rows: Iterator[list[str]]) -> Iterator[tuple[str, Label | None]]:
    first = next(rows, [])
    names = [name.strip().lower() for name in first]
    place = next((names.index(name) for name in COLUMNS if name in names), None)
    labels = None if place is None else next((names.index(name) for name in LABELS if name in names), None)
    if place is None and first:
        yield first[0].strip(), None
    for row in rows:
        if len(row) > (place or 0):
            label = row[labels].strip() if labels is not None and len(row) > labels else ""
            yield row[place or 0].strip(), Label(name=label) if label else None


def _without_nulls(lines: Iterator[str]) -> Iterator[str]:
    return (line.replace("\0", "") for line in lines)
