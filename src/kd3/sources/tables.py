"""Images in tables: parquet and Arrow files, the column that holds the images, and the meaning of a row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kd3.sources.containers import guarded, opened, unusable
from kd3.sources.record import (
    FILE_LIMIT,
    SIDECAR,
    InFile,
    InMemory,
    Label,
    Location,
    NoImages,
    Record,
    Unreadable,
    Unusable,
    too_large,
)
from kd3.sources.remote import Remote
from kd3.sources.trust import beside, is_remote, without_secrets

NAMES = ("image", "jpg", "jpeg", "png", "webp", "img", "bytes", "content")
STATUS, PROBLEM = "status", "error_message"  # columns of img2dataset
SUCCESS = "success"
LABELS = ("label", "labels", "fine_label", "cls", "class", "target", "category")
MOST_NAME = 1000  # characters of a label that is a text


@dataclass(frozen=True, slots=True)
class ImageColumn:
    """The column that holds the images: bytes, or a struct of bytes and path as Hugging Face's datasets write it."""

    name: str
    is_struct: bool
    notes: tuple[str, ...] = ()  # columns that tell of failed downloads
    label: str | None = None  # the column of labels, numbers or texts
    label_names: tuple[str, ...] = ()  # of numbers, as Hugging Face's ClassLabel keeps them

    @property
    def columns(self) -> list[str]:
        """The columns to read."""
        return [self.name, *self.notes, *([self.label] if self.label else [])]

    def rows(self, batch: Any, path: str) -> Iterator[tuple[Location, Label | None]]:
        """Yield the record and the label of each row of a record batch of the file `path`."""
        batch = batch.select(self.columns)
        batch.validate(full=True)  # offsets that point elsewhere would end this process
        column = batch.column(self.name)
        if self.is_struct:
            names = [field.name for field in column.type]
            parts = dict(zip(names, column.flatten(), strict=True))
            contents, places = parts["bytes"], parts.get("path")
        else:
            contents, places = column, None
        noted = [batch.column(name) for name in self.notes]
        labels = batch.column(self.label) if self.label else None
        for row in range(batch.num_rows):
            failure = _failure([note[row].as_py() for note in noted])
            data = contents[row].as_py() if failure is None else None
            place = places[row].as_py() if data is None and places is not None else None
            label = None if labels is None else self._label(labels[row].as_py())
            yield failure or _location(data, place, path), label

    def _label(self, value: Any) -> Label | None:
        if isinstance(value, str) and 0 < len(value) <= MOST_NAME:
            return Label(name=value)
        if not isinstance(value, int) or value < 0:  # -1 marks rows without one
            return None
        return Label(value, self.label_names[value] if value < len(self.label_names) else None)


def _failure(notes: Sequence[Any]) -> Unusable | None:
    if not notes or notes[0] in (None, SUCCESS):
        return None
    words = ": ".join(str(note) for note in notes if note)
    return Unusable("not downloaded", without_secrets(words)[:200])


def _location(data: bytes | None, place: Any, path: str) -> Location:
    if data is not None:
        return InMemory(data) if len(data) <= FILE_LIMIT else Unusable("file too large", too_large().detail)
    if not isinstance(place, str) or not place:
        return Unusable("empty", "the row has no image")
    try:
        where = beside(path, place)
    except Unreadable as problem:
        return Unusable(problem.reason, problem.detail)
    return Remote(where) if is_remote(where) else InFile(where)


def image_column(schema: Any) -> ImageColumn:
    """Return the column of a table's schema that holds images.

    It is the first of these names whose type fits: image, jpg, jpeg, png, webp, img, bytes, content; else the only
    column whose type fits: bytes, or a struct with a field "bytes" of bytes.

    Raises:
        NoImages: none fits, or several of other names do.
    """
    fitting = {
        field.name: _is_struct(field.type) for field in schema if _is_bytes(field.type) or _is_struct(field.type)
    }
    chosen = next((name for wanted in NAMES for name in fitting if name.lower() == wanted), None)
    if chosen is None and len(fitting) == 1:
        (chosen,) = fitting
    if chosen is None:
        if fitting:
            raise NoImages(f"several columns hold bytes ({', '.join(fitting)}); name the one of the images 'image'")
        raise NoImages(f"no column holds the bytes of images; its columns are {', '.join(schema.names)[:200]}")
    if len(schema.get_all_field_indices(chosen)) > 1:
        raise NoImages(f"it has several columns {chosen!r}")
    has_status = STATUS in schema.names and _is_text(schema.field(STATUS).type)
    notes = [STATUS] if has_status else []
    notes += [PROBLEM] if has_status and PROBLEM in schema.names else []
    label = _label_column(schema, chosen)
    return ImageColumn(chosen, fitting[chosen], tuple(notes), label, _class_names(schema, label) if label else ())


def _label_column(schema: Any, images: str) -> str | None:
    """Return the first column with one of the names of `LABELS` whose type is that of labels."""
    for wanted in LABELS:
        for field in schema:
            if field.name.lower() == wanted and field.name != images and _is_label(field.type):
                return str(field.name) if len(schema.get_all_field_indices(field.name)) == 1 else None
    return None


def _is_label(kind: Any) -> bool:
    name = str(kind)
    return (
        name.startswith(("int", "uint"))
        or _is_text(kind)
        or (name.startswith("dictionary<values=") and "string" in name)
    )


def _class_names(schema: Any, label: str) -> tuple[str, ...]:
    """Return the names that Hugging Face's datasets keep of a column's numbers."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]
        names = feature["names"]
        return tuple(names) if all(isinstance(name, str) for name in names) else ()
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()


def _is_bytes(kind: Any) -> bool:
    return str(kind) in ("binary", "large_binary", "binary_view")


def _is_text(kind: Any) -> bool:
    return str(kind) in ("string", "large_string", "string_view")


def _is_struct(kind: Any) -> bool:
    return str(kind).startswith("struct<") and any(field.name == "bytes" and _is_bytes(field.type) for field in kind)


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
