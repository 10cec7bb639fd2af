"""A pool's images by name: their origin, read on demand, and lists of them, one per line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet

from kd3.pool.image_pool import ImagePool
from kd3.pool.pool_files import INDEX, check_columns
from kd3.runtime.errors import KD3Error, in_words

BATCH = 1 << 14
IN_MEMORY = "memory"


def check_index(pool: ImagePool) -> None:
    """Check that a pool's index can be opened and has a row for each image.

    Raises:
        KD3Error: it is missing, damaged or of another length.
    """
    if pool.path is None:
        return
    path = pool.path / INDEX
    try:
        with path.open("rb") as handle, parquet.ParquetFile(handle) as file:  # a path must be UTF-8 there
            rows = file.metadata.num_rows
            check_columns(file.schema_arrow, ("source", "key"))
    except (OSError, KeyError, pyarrow.ArrowException) as problem:
        raise KD3Error(f"pool {pool.path} is damaged: {INDEX} cannot be read: {in_words(problem)}") from None
    if rows != len(pool):
        raise KD3Error(f"pool {pool.path} is damaged: {INDEX} lists {rows:,} images, the manifest {len(pool):,}")


def names(pool: ImagePool) -> Iterator[tuple[list[str], list[str]]]:
    """Yield sources and keys in pool order, in chunks; a pool in memory numbers its images.

    Raises:
        KD3Error: the index cannot be read; see `check_index` for an early check.
    """
    if pool.path is None:
        for start in range(0, len(pool), BATCH):
            keys = [str(position) for position in range(start, min(start + BATCH, len(pool)))]
            yield [IN_MEMORY] * len(keys), keys
        return
    rows = pool.index_rows(("source", "key"))
    while chunk := list(islice(rows, BATCH)):
        yield [source for source, _ in chunk], [key for _, key in chunk]


_ESCAPES = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})  # of lists that kd3 wrote as plain text


def line_of(source: str, key: str) -> str:
    """Return the line of an image, with its end: JSON of source and key, in ASCII.

    >>> line_of("crawl", "a\\tb.png")
    '["crawl", "a\\\\tb.png"]\\n'
    """
    return json.dumps([source, key]) + "\n"


class ListedImages:
    """The images that a file names.

    A line is a JSON list of source and key, or a key, or a source, a tab and a key. In the last form tabs and breaks
    in a name may stand as \\t, \\n and \\r.

    Raises:
        KD3Error: the file cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            text = Path(path).read_bytes().decode("utf-8-sig")
        except FileNotFoundError:
            raise KD3Error(f"the list {path} does not exist") from None
        except (OSError, ValueError) as problem:
            raise KD3Error(f"the list {path} cannot be read: {in_words(problem)}") from None
        # Not `splitlines`, which knows ten more ends of lines, all of which a name may hold.
        self._lines = {line for line in text.replace("\r\n", "\n").split("\n") if line.strip()}
        self._pairs = {pair for line in self._lines if (pair := _pair(line)) is not None}

    def holds(self, source: str, key: str) -> bool:
        """Return whether an image is listed."""
        if (source, key) in self._pairs or key in self._lines or f"{source}\t{key}" in self._lines:
            return True
        return f"{source.translate(_ESCAPES)}\t{key.translate(_ESCAPES)}" in self._lines


def _pair(line: str) -> tuple[str, str] | None:
    if not line.startswith("["):
        return None
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if isinstance(values, list) and len(values) == 2 and all(isinstance(value, str) for value in values):
        return values[0], values[1]
    return None
