"""A pool's parquet index, one row an image, written and read in constant memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kd3.errors import KD3Error
from kd3.storage.atomic import replacing

INDEX = "index.parquet"
COLUMNS = ("source", "key", "sha256", "width", "height", "format", "digest")
ROWS = 8_192  # written together

Row = Sequence[Any]  # in the order of COLUMNS: sha256 is 64 hexadecimal digits, digest 16 bytes


class IndexWriter:
    """Takes the rows of an index, in order; made by `writing_index`."""

    def __init__(self, file: Any, schema: Any) -> None:
        self._file, self._schema = file, schema
        self._waiting: list[Row] = []

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows."""
        self._waiting.extend(rows)
        if len(self._waiting) >= ROWS:
            self.flush()

    def flush(self) -> None:
        """Write pending rows."""
        import pyarrow as pa

        rows, self._waiting = self._waiting, []
        if rows:
            columns = zip(zip(*rows, strict=True), self._schema, strict=True)
            arrays = [pa.array(column, field.type) for column, field in columns]
            self._file.write_table(pa.Table.from_arrays(arrays, schema=self._schema))


@contextmanager
def writing_index(path: Path) -> Iterator[IndexWriter]:
    """Yield a writer of an index; the file gets its name when the block succeeds."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = (pa.string(), pa.string(), pa.string(), pa.int32(), pa.int32(), pa.string(), pa.binary(16))
    schema = pa.schema(list(zip(COLUMNS, kinds, strict=True)))
    # pyarrow takes no path that is not UTF-8, hence the handle.
    with (
        replacing(path) as temporary,
        temporary.open("wb") as handle,
        pq.ParquetWriter(handle, schema) as file,
    ):
        writer = IndexWriter(file, schema)
        yield writer
        writer.flush()


def read_index(path: Path, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows' values in these columns, in order; raises pyarrow's errors."""
    import pyarrow.parquet

    with path.open("rb") as handle, pyarrow.parquet.ParquetFile(handle) as file:
        for batch in file.iter_batches(columns=list(columns)):
            yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)


def checked_rows(path: Path, columns: Sequence[str], images: int) -> Iterator[tuple[Any, ...]]:
    """Yield the values of `read_index`, for a pool with this number of images.

    Raises:
        KD3Error: the index is missing or damaged, or lists another number of images.
    """
    import pyarrow

    listed = 0
    try:
        for row in read_index(path, columns):
            listed += 1
            yield row
    except (OSError, KeyError, UnicodeError, pyarrow.ArrowException) as problem:
        raise KD3Error(f"{path} cannot be read: {problem}") from None
    if listed != images:
        raise KD3Error(f"{path} lists {listed:,} images, its pool holds {images:,}")
