"""Images in tables: parquet (img2dataset, Hugging Face) and Arrow files (Hugging Face's `save_to_disk`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kd3.pool.allowed import is_remote
from kd3.pool.pixels import NoImages
from kd3.pool.reasons import SIDECAR
from kd3.pool.record import Record, Unusable
from kd3.pool.sources.containers import guarded, opened, unusable
from kd3.pool.sources.image_column import ImageColumn, image_column

ROWS = 32  # of images in memory at once
BUFFER = 1 << 20  # bytes; without one a whole column of a row group is read at once
FILE_FORMAT = b"ARROW1"  # how Arrow's other format begins, which has its directory at the end


def parquet_members(path: str, source: str, prefix: str, *, limit: int | None = None) -> Iterator[Record]:
    """Yield a parquet's images; a damaged row group, or a damaged file, gives one record that says so.

    One without images is a sidecar where it was found in a folder, as what img2dataset writes beside its tars is.
    """
    return guarded(_of_parquet(path, source, prefix), path, source, prefix, limit)


def arrow_members(path: str, source: str, prefix: str, *, limit: int | None = None) -> Iterator[Record]:
    """Yield an Arrow file's images; of a damaged one those before the damage, and one record that says so."""
    return guarded(_of_arrow(path, source, prefix), path, source, prefix, limit)


def parquet_count(path: str) -> int:
    """Return about how many records `parquet_members` yields."""
    with _parquet(path) as file:
        try:
            image_column(file.schema_arrow)
        except NoImages:
            return 1
        return int(file.metadata.num_rows)


def arrow_count(path: str) -> int:
    """Return how many rows an Arrow file on a disk has."""
    with _record_batches(path) as (schema, batches):
        try:
            image_column(schema)
        except NoImages:
            return 1
        return sum(batch.num_rows for batch in batches)


def _of_parquet(path: str, source: str, prefix: str) -> Iterator[Record]:
    with _parquet(path) as file:
        column = _column(file.schema_arrow, prefix)
        if column is None:
            yield Record(source, prefix.rstrip("/"), Unusable(SIDECAR))
            return
        start = 0
        for group in range(file.metadata.num_row_groups):
            row, end = start, start + file.metadata.row_group(group).num_rows
            try:
                for batch in file.iter_batches(ROWS, row_groups=[group], columns=column.columns, use_threads=False):
                    for location, label in column.rows(batch, path):
                        yield Record(source, f"{prefix}{row}", location, label)
                        row += 1
            except Exception as problem:  # the other row groups may be sound
                yield Record(source, f"{prefix}{row}-{end - 1}", unusable(problem))
            start = end


@contextmanager
def _parquet(path: str) -> Iterator[Any]:
    from pyarrow import parquet

    with (
        opened(path) as handle,  # a path must be UTF-8 there
        parquet.ParquetFile(handle, buffer_size=BUFFER, pre_buffer=False, page_checksum_verification=True) as file,
    ):
        yield file


def _of_arrow(path: str, source: str, prefix: str) -> Iterator[Record]:
    with _record_batches(path) as (schema, batches):
        column = _column(schema, prefix)
        if column is None:
            yield Record(source, prefix.rstrip("/"), Unusable(SIDECAR))
            return
        row = 0
        for batch in batches:
            for start in range(0, batch.num_rows, ROWS):
                for location, label in column.rows(batch.slice(start, ROWS), path):
                    yield Record(source, f"{prefix}{row}", location, label)
                    row += 1


@contextmanager
def _record_batches(path: str) -> Iterator[tuple[Any, Iterator[Any]]]:
    """Open an Arrow file: its schema, and its record batches; of a file on a disk they are mapped, not read."""
    import pyarrow
    from pyarrow import ipc

    with opened(path) as handle:
        is_file = handle.read(len(FILE_FORMAT)) == FILE_FORMAT
        handle.seek(0)
        with _mapped(pyarrow, path, handle) as contents:
            if is_file:
                with ipc.open_file(contents) as reader:
                    yield reader.schema, (reader.get_batch(number) for number in range(reader.num_record_batches))
            else:
                with ipc.open_stream(contents) as reader:
                    yield reader.schema, iter(reader)


def _mapped(pyarrow: Any, path: str, handle: Any) -> Any:
    if is_remote(path):
        return pyarrow.PythonFile(handle, mode="r")
    try:
        return pyarrow.memory_map(path)
    except UnicodeError:
        return pyarrow.PythonFile(handle, mode="r")


def _column(schema: Any, prefix: str) -> ImageColumn | None:
    try:
        return image_column(schema)
    except NoImages:
        if not prefix:  # it was given as a source itself
            raise
        return None
