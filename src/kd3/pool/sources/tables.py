"""Images in the rows of tables: parquet (img2dataset, Hugging Face) and Arrow files (`datasets.save_to_disk`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kd3.pool.reasons import SIDECAR
from kd3.pool.record import FILE_LIMIT, InFile, InMemory, Location, Record, Unusable, printable, too_large

ROWS = 64  # read at once: their bytes are all in memory then
# Columns of image bytes, or of structs with `bytes` and `path`, by the names that they go by; the first found is taken.
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "content", "data", "picture")
KEY_COLUMNS = ("key", "__key__", "id", "image_id", "file_name", "filename", "path")
STATUS = "status"  # img2dataset: "success", or what went wrong with the download
DETAIL = "error_message"


def image_column(schema: pa.Schema) -> str | None:
    """Return the column that holds images: one by a usual name, or the only one that could; None where none can."""
    could = [field.name for field in schema if _is_binary(field.type) or _is_struct(field.type)]
    by_name = next((name for wanted in IMAGE_COLUMNS for name in could if name.lower() == wanted), None)
    return by_name or (could[0] if len(could) == 1 else None)


def parquet_images(path: str, source: str, prefix: str) -> Iterator[Record]:
    """Yield a parquet file's images row by row; one without any is a sidecar in a folder, refused on its own."""
    try:
        with pq.ParquetFile(path) as file:
            columns = _columns(file.schema_arrow)
            if columns is None:
                yield _without_images(path, source, prefix, file.schema_arrow)
                return
            batches = file.iter_batches(batch_size=ROWS, columns=columns)
            yield from _records(batches, path, source, prefix)
    except (pa.ArrowException, OSError, ValueError) as problem:
        yield _damaged(path, source, prefix, problem)


def parquet_count(path: str) -> int:
    """Return how many rows a parquet file has."""
    return int(pq.read_metadata(path).num_rows)


def arrow_images(path: str, source: str, prefix: str) -> Iterator[Record]:
    """Yield an Arrow file's images row by row, whether it is in the stream or the file format."""
    try:
        with pa.memory_map(path) as mapped:
            batches = _arrow_batches(mapped)
            schema = batches.schema
            columns = _columns(schema)
            if columns is None:
                yield _without_images(path, source, prefix, schema)
                return
            parts = (
                batch.select(columns).slice(start, ROWS)
                for batch in _each(batches)
                for start in range(0, len(batch), ROWS)
            )
            yield from _records(parts, path, source, prefix)
    except (pa.ArrowException, OSError, ValueError) as problem:
        yield _damaged(path, source, prefix, problem)


def arrow_count(path: str) -> int:
    """Return how many rows an Arrow file has."""
    with pa.memory_map(path) as mapped:
        return sum(len(batch) for batch in _each(_arrow_batches(mapped)))


def _arrow_batches(mapped: pa.MemoryMappedFile) -> Any:
    try:
        return pa.ipc.open_stream(mapped)
    except pa.ArrowInvalid:
        mapped.seek(0)
        return pa.ipc.open_file(mapped)


def _each(reader: Any) -> Iterator[pa.RecordBatch]:
    if hasattr(reader, "num_record_batches"):
        yield from (reader.get_batch(place) for place in range(reader.num_record_batches))
    else:
        yield from reader


def _columns(schema: pa.Schema) -> list[str] | None:
    image = image_column(schema)
    if image is None:
        return None
    key = next((name for name in KEY_COLUMNS if name in schema.names and _is_name(schema.field(name).type)), None)
    more = [name for name in (key, STATUS, DETAIL) if name in schema.names and name != image]
    return [image, *(str(name) for name in more)]


def _records(batches: Iterator[pa.RecordBatch], path: str, source: str, prefix: str) -> Iterator[Record]:
    place = 0
    for batch in batches:
        names = batch.schema.names
        key = next((name for name in names[1:] if name not in (STATUS, DETAIL)), None)
        columns = [batch.column(place) for place in range(len(names))]
        cells = dict(zip(names[1:], columns[1:], strict=True))
        for row in range(len(batch)):
            image = columns[0][row].as_py()
            inside = image.get("path") if isinstance(image, dict) else None
            name = (cells[key][row].as_py() if key else None) or inside or f"{place:09d}"
            status = cells[STATUS][row].as_py() if STATUS in cells else None
            detail = cells[DETAIL][row].as_py() if DETAIL in cells else None
            location = _location(image, path, status=status, detail=detail)
            yield Record(source, prefix + printable(str(name)), location)
            place += 1


def _location(image: Any, path: str, *, status: Any, detail: Any) -> Location:
    data = image.get("bytes") if isinstance(image, dict) else image
    if data is not None:
        return InMemory(data) if len(data) <= FILE_LIMIT else Unusable("file too large", too_large().detail)
    if isinstance(status, str) and status != "success":
        return Unusable("not downloaded", str(detail or status)[:200])
    beside = image.get("path") if isinstance(image, dict) else None
    if not beside:
        return Unusable("empty", "the row holds no image")
    # A table must not make kd3 read what lies elsewhere on this machine.
    folder = os.path.realpath(os.path.dirname(path))
    target = os.path.realpath(os.path.join(folder, beside))
    if os.path.commonpath([folder, target]) != folder:
        return Unusable("unreadable", "the row names a file outside of the table's folder")
    return InFile(target)


def _without_images(path: str, source: str, prefix: str, schema: pa.Schema) -> Record:
    if prefix:
        return Record(source, prefix.rstrip("/"), Unusable(SIDECAR))
    words = (
        f"a table without a column of images; it has {', '.join(schema.names[:12])}; kd3 takes bytes, or structs of "
        f"bytes and path, in a column called {', '.join(IMAGE_COLUMNS[:5])} ..., or in the only one of that kind"
    )
    return Record(source, printable(os.path.basename(path)), Unusable("not an image", words))


def _damaged(path: str, source: str, prefix: str, problem: Exception) -> Record:
    name = prefix.rstrip("/") or printable(os.path.basename(path))
    return Record(source, name, Unusable("archive damaged", str(problem)[:200]))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_struct(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and any(
        kind.field(place).name == "bytes" and _is_binary(kind.field(place).type) for place in range(kind.num_fields)
    )


def _is_name(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind))
