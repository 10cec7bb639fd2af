"""Lists of images: a text file with a path or a URL on each line, or a table of them as CSV."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator

from kd3.errors import KD3Error
from kd3.pool.record import printable
from kd3.pool.sources.remote import is_url

SUFFIXES = (".txt", ".lst", ".list", ".csv", ".tsv")
COLUMNS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "url", "key")
LINE_LIMIT = 1 << 16


def is_list(path: str) -> bool:
    """Say whether a file that is given as a source is a list of images, by its name."""
    return path.lower().endswith(SUFFIXES)


def check_list(path: str) -> None:
    """Read a list through once, so that what is wrong with it is told before anything is made.

    Raises:
        KD3Error: as `listed`; or it names nothing.
    """
    if not sum(1 for _ in listed(path)):
        raise KD3Error(f"the list {printable(path)} names nothing")


def listed(path: str) -> Iterator[str]:
    """Yield the places that a list names, relative ones from the list's own folder; empty lines and # are passed over.

    Raises:
        KD3Error: it is no text, or a CSV of several columns of which none is called path, file, image or url.
    """
    folder = os.path.dirname(path)
    try:
        # Names that are no UTF-8 come back as they are on disk.
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as handle:
            entries = _column(handle, path) if path.lower().endswith((".csv", ".tsv")) else _lines(handle, path)
            for entry in entries:
                yield entry if is_url(entry) else os.path.join(folder, entry)
    except csv.Error as problem:
        raise KD3Error(f"the list {printable(path)} is not CSV: {problem}") from None


def _lines(handle: Iterator[str], path: str) -> Iterator[str]:
    for number, line in enumerate(handle, start=1):
        entry = line.strip()
        if "\0" in entry or len(entry) > LINE_LIMIT:
            raise KD3Error(f"the list {printable(path)} is no text: line {number} holds what no path can")
        if entry and not entry.startswith("#"):
            yield entry


def _column(handle: Iterator[str], path: str) -> Iterator[str]:
    reader = csv.reader(_lines(handle, path), delimiter="\t" if path.lower().endswith(".tsv") else ",")
    header = next(reader, [])
    names = [name.strip().lower() for name in header]
    place = next((names.index(name) for name in COLUMNS if name in names), None)
    if place is None:
        if len(header) != 1:
            raise KD3Error(
                f"the list {printable(path)} has the columns {', '.join(header[:10])}; "
                f"one must be called {', '.join(COLUMNS)}"
            )
        place = 0
        yield header[0].strip()
    for row in reader:
        if len(row) > place and row[place].strip():
            yield row[place].strip()
