"""The files of a pool: packed pixels, index, manifest, lists of the images left out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pydantic
from pydantic import Field

from kd3.config.records import Preparation
from kd3.config.settings import Settings
from kd3.runtime.errors import KD3Error, in_words, quoted
from kd3.runtime.files import read_versioned, refuse_links, replacing, sync_folder, write_json
from kd3.version import __version__

REJECTED = "rejected.csv"
DUPLICATES = "duplicates.csv"
NEAR_DUPLICATES = "near-duplicates.csv"
KEPT_OUT = "kept-out.csv"
LEFT_OUT = (REJECTED, DUPLICATES, NEAR_DUPLICATES, KEPT_OUT)


INDEX = "index.parquet"
TEXT, NUMBER, BYTES = "text", "a number", "bytes"
COLUMNS = {
    **dict.fromkeys(("source", "key", "sha256"), TEXT),
    **dict.fromkeys(("width", "height"), NUMBER),
    "format": TEXT,
    "digest": BYTES,
}
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

    kinds = {TEXT: pa.string(), NUMBER: pa.int32(), BYTES: pa.binary(16)}
    schema = pa.schema([(name, kinds[kind]) for name, kind in COLUMNS.items()])
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
    """Yield the rows' values in these columns, in order; raises pyarrow's errors, also for values of another type."""
    import pyarrow.parquet

    with path.open("rb") as handle, pyarrow.parquet.ParquetFile(handle) as file:
        check_columns(file.schema_arrow, columns)
        for batch in file.iter_batches(columns=list(columns)):
            if empty := next((name for name in columns if batch.column(name).null_count), None):
                raise pyarrow.ArrowInvalid(f"its column {empty!r} is empty in some rows")
            yield from zip(*(batch.column(name).to_pylist() for name in columns), strict=True)


def check_columns(schema: Any, columns: Iterable[str]) -> None:
    """Check the types of an index's columns.

    Raises:
        KeyError: one is missing.
        pyarrow.ArrowInvalid: one is of another type.
    """
    import pyarrow
    from pyarrow import types

    right = {
        TEXT: (types.is_string, types.is_large_string),
        NUMBER: (types.is_integer,),
        BYTES: (types.is_fixed_size_binary, types.is_binary),
    }
    for name in columns:
        found = schema.field(name).type
        if not any(fits(found) for fits in right[COLUMNS[name]]):
            raise pyarrow.ArrowInvalid(f"its column {name!r} must hold {COLUMNS[name]} and holds {found}")


def sha256_from(text: str, where: Path) -> bytes:
    """Return a file's hash from a row of an index.

    Raises:
        KD3Error: it is not one.
    """
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise KD3Error(f"{where} is damaged: {quoted(text)} is no SHA-256") from None


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
        raise KD3Error(f"{path} cannot be read: {in_words(problem)}") from None
    if listed != images:
        raise KD3Error(f"{path} lists {listed:,} images, its pool holds {images:,}")


FORMAT: Literal["kd3-pool"] = "kd3-pool"
VERSION = 1
NAME = "manifest.json"
LISTS = (INDEX, *LEFT_OUT)
DERIVING = "deriving.json"  # beside the parts of a derived pool until it is finished


LARGEST_SIDE = 1 << 14  # pixels; `kd3 ingest` makes smaller ones
HASH = r"^[0-9a-f]{64}$"  # names of files beside the pool are made of it


class Part(Settings):
    """One file of packed pixels: raw uint8, (images, 3, N, N)."""

    file: str
    images: int = Field(ge=1)


class Counts(Settings):
    """Outcomes of the files."""

    found: int  # everything but sidecars
    kept: int
    duplicates: int
    rejected: dict[str, int]  # by reason
    skipped: int  # sidecars and hidden files
    near_duplicates: int = 0
    kept_out: int = 0  # copies of test images


class KeptOut(Settings):
    """Test images that the pool excludes."""

    source: str
    images: int
    content: str = Field(pattern=HASH)  # hash of their files, in any order: `fingerprint`


class Manifest(Settings):
    """The pool's `manifest.json`, written last: a folder without it is no finished pool."""

    format: Literal["kd3-pool"]
    version: int
    image_size: int = Field(ge=1, le=LARGEST_SIDE)
    images: int = Field(ge=0)
    content_hash: str = Field(pattern=HASH)
    counts: Counts
    parts: list[Part]
    sources: list[str]
    settings: dict[str, Any]
    preparation: dict[str, Any] | None = None  # of its pictures; earlier versions stored it in the settings
    kept_out: tuple[KeptOut, ...] = ()
    files: dict[str, str] = Field({})  # SHA-256 of the index, the lists beside it, and the parts
    kd3: str
    created: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return self.model_dump(mode="json")

    def how_made(self) -> Preparation:
        """Return the preparation of its pictures.

        Raises:
            ValueError: this kd3 does not know the preparation.
        """
        fit = self.settings.get("fit")  # of pools that earlier versions ingested or merged
        return Preparation.of(self.preparation or (fit and {"fit": fit}) or None, size=self.image_size)


def write_manifest(
    folder: Path,
    *,
    preparation: Preparation,
    content_hash: str,
    counts: Counts,
    parts: list[Part],
    digests: Mapping[str, str],
    sources: list[str],
    settings: dict[str, Any],
    seconds: float,
    kept_out: Sequence[KeptOut] = (),
) -> None:
    """Finish a pool: write its manifest, atomically, with this version of kd3 and the time; parts have `digests`."""
    manifest = Manifest(
        format=FORMAT,
        version=VERSION,
        image_size=preparation.size,
        preparation=preparation.to_dict(),
        images=sum(part.images for part in parts),
        content_hash=content_hash,
        counts=counts,
        parts=parts,
        sources=sources,
        settings=settings,
        kept_out=tuple(kept_out),
        files={**{name: sha256_of(folder / name) for name in LISTS if (folder / name).is_file()}, **digests},
        kd3=__version__,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
    )
    write_json(folder / NAME, manifest.to_dict())


def sha256_of(path: Path) -> str:
    """Return the hash of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while data := handle.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()


def content_hash(image_size: int, digests: Iterable[bytes]) -> str:
    """Return the hash of a pool's pixels, in order.

    It does not depend on the images' sources or the division into parts.
    """
    total = hashlib.sha256(f"kd3-pool {image_size}\n".encode())
    for digest in digests:
        total.update(digest)
    return total.hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Return a pool's manifest.

    Raises:
        KD3Error: the folder is missing, no pool, unfinished, damaged or written by a newer kd3.
    """
    path = folder / NAME
    if not folder.exists():
        raise KD3Error(f"pool {folder} does not exist; make it with: kd3 ingest SOURCE --out {folder} --image-size N")
    if not path.is_file():
        if (folder / "ingest.sqlite").is_file():
            raise KD3Error(f"pool {folder} is not finished; run the same `kd3 ingest` command again to finish it")
        if (folder / DERIVING).is_file():
            raise KD3Error(f"pool {folder} is not finished; derive it once more")
        raise KD3Error(f"{folder} is not a pool: {NAME} is missing; kd3 ingest SOURCE --out POOL makes one of images")
    values = read_versioned(path, format_name=FORMAT, version=VERSION)
    try:
        return Manifest.model_validate(values)
    except pydantic.ValidationError as problem:
        first = problem.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise KD3Error(f"{path} is damaged: {name}: {first['msg']}") from None


PARTS = "images-*.bin"
# Computed from the pixels and stored beside them: outputs of teachers, and perceptual hashes.
OUTPUTS = LOGITS, FEATURES, STATISTICS = "teacher_logits", "teacher_features", "teacher_statistics"
HASHES = "hashes-{}.npy"
PART_BYTES = 256 << 20
WRITE_BYTES = 1 << 20


class PackedImages:
    """Appends images (3, N, N) uint8 to a pool's parts.

    The first `images` exist already; everything after them is cut off.

    Raises:
        KD3Error: there are fewer, or a part is a link, which may lead anywhere.
    """

    def __init__(self, folder: Path, image_size: int, *, images_per_part: int, images: int = 0) -> None:
        self.folder, self.images, self.images_per_part = folder, images, images_per_part
        self.image_size, self.image_bytes = image_size, 3 * image_size * image_size
        self._handle: IO[bytes] | None = None
        self._digest = hashlib.sha256()  # of the part that is written to
        self._digests: dict[str, str] = {}  # of the parts before it
        self._cut()

    def append(self, pixels: np.ndarray) -> None:
        """Append an image; `sync` makes it survive a crash."""
        if self._handle is None or self.images % self.images_per_part == 0:
            self._open_part(self.images // self.images_per_part)
        assert self._handle is not None
        self._handle.write(pixels.data)
        self._digest.update(pixels.data)
        self.images += 1

    def read(self, positions: np.ndarray) -> np.ndarray:
        """Return images by position: (n,) integers -> (n, 3, N, N) uint8; also unsynced ones."""
        if self._handle is not None:
            self._handle.flush()
        images = np.empty((len(positions), self.image_bytes), dtype=np.uint8)
        numbers = positions // self.images_per_part
        for number in np.unique(numbers):
            here = numbers == number
            part = np.memmap(self.folder / part_name(int(number)), dtype=np.uint8, mode="r")
            images[here] = part.reshape(-1, self.image_bytes)[positions[here] % self.images_per_part]
        return images.reshape(len(positions), 3, self.image_size, self.image_size)

    def sync(self) -> None:
        """Return once everything so far is on disk."""
        if self._handle is not None:
            self._handle.flush()
            os.fsync(self._handle.fileno())

    def close(self) -> None:
        """Close the file; its last bytes are written but not synced."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._digests[Path(handle.name).name] = self._digest.hexdigest()
            handle.close()  # writes what is buffered, and fails where the disk is full

    def parts(self) -> list[Part]:
        """Return the files and their numbers of images."""
        full, rest = divmod(self.images, self.images_per_part)
        sizes = [self.images_per_part] * full + ([rest] if rest else [])
        return [Part(file=part_name(number), images=size) for number, size in enumerate(sizes)]

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of each file in hex, by name: computed while writing; older parts are read."""
        if self._handle is not None:
            self._digests[Path(self._handle.name).name] = self._digest.hexdigest()
        return {part.file: self._digests.get(part.file) or sha256_of(self.folder / part.file) for part in self.parts()}

    def _open_part(self, number: int) -> None:
        self.sync()
        self.close()
        path = self.folder / part_name(number)
        self._digest = hashlib.sha256(path.read_bytes() if path.is_file() else b"")
        self._handle = path.open("ab", buffering=WRITE_BYTES)
        sync_folder(self.folder)

    def _cut(self) -> None:
        """Cut off pixels that were appended but never recorded; recorded ones must be there."""
        expected = {part.file: part.images * self.image_bytes for part in self.parts()}
        refuse_links(self.folder.glob(PARTS))
        for path in self.folder.glob(PARTS):
            if path.name not in expected:
                path.unlink()
        for name, size in expected.items():
            path = self.folder / name
            if not path.is_file() or path.stat().st_size < size:
                raise KD3Error(
                    f"the unfinished pool {self.folder} is damaged: {name} is missing or shorter than recorded; "
                    f"remove the folder and begin again"
                )
            os.truncate(path, size)


def images_per_part(image_size: int, part_bytes: int = PART_BYTES) -> int:
    """Return how many images of this side a part holds, at least one."""
    return max(1, part_bytes // (3 * image_size * image_size))


def part_name(number: int) -> str:
    """Return the file name of a part."""
    return f"images-{number:05d}.bin"
