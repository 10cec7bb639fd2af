"""Progress of an ingest, on disk: it may be killed at any moment and continues from here."""

from __future__ import annotations

import csv
import json
import sqlite3
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kd3.pool.decode import Decoded
from kd3.pool.leaks import EntryFilter, KnownImages
from kd3.pool.near_copies import thumbnails
from kd3.pool.pool_files import (
    DUPLICATES,
    KEPT_OUT,
    NEAR_DUPLICATES,
    PART_BYTES,
    REJECTED,
    PackedImages,
    Part,
    images_per_part,
    writing_index,
)
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import refuse_links, replacing
from kd3.sources.containers import Limits
from kd3.sources.finding import DEFAULT, contents, find_part
from kd3.sources.record import Record, Unusable

SCHEMA = """
CREATE TABLE IF NOT EXISTS progress (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS items (
    position INTEGER PRIMARY KEY, source TEXT, key TEXT, sha256 BLOB UNIQUE,
    width INTEGER, height INTEGER, format TEXT, digest BLOB);
CREATE TABLE IF NOT EXISTS rejected (source TEXT, key TEXT, reason TEXT, detail TEXT);
CREATE TABLE IF NOT EXISTS duplicates (source TEXT, key TEXT, position INTEGER);
CREATE TABLE IF NOT EXISTS near_copies (source TEXT, key TEXT, position INTEGER, bits INTEGER, similarity REAL);
CREATE TABLE IF NOT EXISTS kept_out (
    source TEXT, key TEXT, known_source TEXT, known_key TEXT, bits INTEGER, similarity REAL);
CREATE TABLE IF NOT EXISTS hashes (position INTEGER PRIMARY KEY, hash INTEGER);
"""
TABLES = {"progress", "items", "rejected", "duplicates", "near_copies", "kept_out", "hashes"}


@dataclass(slots=True)
class Rows:
    """Rows that a batch adds to the tables of the same names; `renamed` changes `items`."""

    items: list[tuple[Any, ...]] = field(default_factory=list)
    renamed: list[tuple[str, str, int]] = field(default_factory=list)
    duplicates: list[tuple[str, str, int]] = field(default_factory=list)
    near_copies: list[tuple[str, str, int, int, float]] = field(default_factory=list)
    kept_out: list[tuple[str, str, str, str, int, float]] = field(default_factory=list)
    hashes: list[tuple[int, int]] = field(default_factory=list)
    rejected: list[tuple[str, str, str, str]] = field(default_factory=list)

    def write(self, database: sqlite3.Connection) -> None:
        """Put the rows into the open transaction."""
        run = database.executemany
        run("INSERT INTO items VALUES (?, ?, ?, ?, ?, ?, ?, ?)", self.items)
        run("UPDATE items SET source = ?, key = ? WHERE position = ?", self.renamed)
        run("INSERT INTO duplicates VALUES (?, ?, ?)", self.duplicates)
        run("INSERT INTO near_copies VALUES (?, ?, ?, ?, ?)", self.near_copies)
        run("INSERT INTO kept_out VALUES (?, ?, ?, ?, ?, ?)", self.kept_out)
        run("INSERT INTO hashes VALUES (?, ?)", self.hashes)
        run("INSERT INTO rejected VALUES (?, ?, ?, ?)", self.rejected)


class Place(NamedTuple):
    """A position in the sources: finished files and archives, and finished records of the next one."""

    found: int = 0
    inside: int = 0


class RemainingRecords:
    """The sources' records from a position on.

    Archives before it are not opened again, and may be gone. Records are drawn ahead of their processing; `place`
    follows the processing. With `part` (I, N) it is the I-th of N parts.
    """

    def __init__(
        self, sources: Sequence[str], start: Place, part: tuple[int, int] | None = None, limits: Limits = DEFAULT
    ) -> None:
        self._sources, self._start, self._part, self._limits = sources, start, part, limits
        self._begun: deque[tuple[int, int]] = deque()  # (records before it, its number) of files and archives
        self._last = (-start.inside, start.found)

    def __iter__(self) -> Iterator[Record]:
        drawn = 0
        ahead = islice(find_part(self._sources, self._part), self._start.found, None)
        for number, found in enumerate(ahead, self._start.found):
            members = contents(found, self._limits)
            if number == self._start.found:
                members = _after(members, self._start.inside)
            else:
                self._begun.append((drawn, number))
            for record in members:
                drawn += 1
                yield record

    def place(self, done: int) -> Place:
        """Return the position after the first `done` records; `done` must not decrease between calls."""
        while self._begun and self._begun[0][0] <= done:
            self._last = self._begun.popleft()
        before, number = self._last
        return Place(number, done - before)


def _after(members: Iterator[Record], count: int) -> Iterator[Record]:
    """Skip `count` records and yield the others; if the archive is shorter, yield its final error record."""
    number, last = 0, None
    for number, last in enumerate(members, 1):
        if number > count:
            yield last
    if last is not None and number < count and isinstance(last.location, Unusable):
        yield last


DATABASE = "ingest.sqlite"
BATCH = 256  # rows per database write
BATCH_BYTES = 8 << 20  # of pending pixels with them
CACHE_BYTES = 32 << 20  # hashes are spread over their index: a smaller cache would cause repeated reads and writes


class IngestState:
    """Counts, index rows and packed pixels of a running ingest.

    Pixels are appended and synced first, then one transaction records them. On resumption everything after the recorded
    end is cut off. Duplicates are found by a unique index on
    disk, so memory does not grow with the pool.
    """

    def __init__(
        self,
        folder: Path,
        image_size: int,
        *,
        part_bytes: int = PART_BYTES,
        keep_out: Sequence[KnownImages] = (),
        near: bool = False,
    ) -> None:
        self.folder, self.image_size = folder, image_size
        self.database = sqlite3.connect(folder / DATABASE, isolation_level=None)
        self.database.execute("PRAGMA synchronous = FULL")
        self.database.execute(f"PRAGMA cache_size = -{CACHE_BYTES >> 10}")
        self.database.executescript(SCHEMA)
        stored = {name: json.loads(value) for name, value in self.database.execute("SELECT * FROM progress")}
        self.files: int = stored.get("files", 0)  # records consumed, sidecars among them
        self.skipped: int = stored.get("skipped", 0)
        self.seconds: float = stored.get("seconds", 0.0)
        # Position in the sources (see `RemainingRecords`); None if an earlier version of kd3 counted files only.
        place = stored.get("place", None if self.files else Place())
        self.place: Place | None = None if place is None else Place(*place)
        # From the start of the ingest, not this version's default.
        per_part: int = stored.get("images_per_part", images_per_part(image_size, part_bytes))
        try:
            self._packed = PackedImages(folder, image_size, images_per_part=per_part, images=stored.get("images", 0))
        except Exception:
            self.database.close()
            raise
        self._batch = max(1, min(BATCH, BATCH_BYTES // self._packed.image_bytes))
        self._waiting: list[tuple[Record, Decoded]] = []
        self._rejected: list[tuple[str, str, str, str]] = []
        self._filter: EntryFilter | None = None
        if keep_out or near:
            self._filter = EntryFilter(keep_out, self._thumbnails_at if near else None)
        if self._filter and self._filter.knows_pool:
            self._filter.learn(self.hashes())
        self.database.execute("BEGIN")

    def begin(self, request: dict[str, Any]) -> None:
        """Store the settings."""
        self._put("request", request)
        self._put("images_per_part", self._packed.images_per_part)
        self.commit()

    @property
    def images(self) -> int:
        """Number of images in the pool so far."""
        return self._packed.images

    def add(self, record: Record, decoded: Decoded) -> None:
        """Store an image, or record it as a duplicate."""
        self._waiting.append((record, decoded))
        if len(self._waiting) >= self._batch:
            self._flush()

    def reject(self, record: Record, reason: str, detail: str) -> None:
        """Record an unusable file."""
        self._rejected.append((record.source, record.key, reason, detail))
        if len(self._rejected) >= BATCH:
            self._flush()

    def commit(self) -> None:
        """Commit everything so far, so that it survives a crash."""
        self._flush()
        self._packed.sync()
        for name in ("files", "skipped", "seconds", "images", "place"):
            self._put(name, getattr(self, name))
        self.database.execute("COMMIT")
        self.database.execute("BEGIN")

    def close(self) -> None:
        """Close the files; uncommitted work is dropped."""
        try:
            self._packed.close()
        finally:
            self.database.close()

    def parts(self) -> list[Part]:
        """Return the files of packed pixels."""
        return self._packed.parts()

    def part_digests(self) -> dict[str, str]:
        """Return the digests of these files."""
        return self._packed.digests()

    def rejected_counts(self) -> dict[str, int]:
        """Return how many files were rejected, by reason."""
        return dict(self.database.execute("SELECT reason, COUNT(*) FROM rejected GROUP BY reason ORDER BY 1"))

    def left_out(self) -> tuple[int, int, int]:
        """Return how many files were duplicates, near copies, and kept out."""
        counts = (
            self.database.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]
            for table in ("duplicates", "near_copies", "kept_out")
        )
        duplicates, near_copies, kept_out = map(int, counts)
        return duplicates, near_copies, kept_out

    def hashes(self) -> np.ndarray:
        """Return the images' perceptual hashes, in order, as far as near copies are looked for: (n,) uint64."""
        rows = self.database.execute("SELECT hash FROM hashes ORDER BY position")
        return np.fromiter((value for (value,) in rows), dtype=np.uint64)

    def _thumbnails_at(self, positions: np.ndarray) -> np.ndarray:
        return thumbnails(self._packed.read(positions))

    def first_rejected(self, count: int) -> list[tuple[str, str, str]]:
        """Return the keys, reasons and details of the first rejected files."""
        return list(self.database.execute("SELECT key, reason, detail FROM rejected LIMIT ?", (count,)))

    def digests(self) -> Iterator[bytes]:
        """Yield the images' pixel digests, in order."""
        for row in self.database.execute("SELECT digest FROM items ORDER BY position"):
            yield row[0]

    def write_index(self, path: Path) -> None:
        """Write the images' parquet index, in order, in constant memory."""
        rows = self.database.execute(
            "SELECT source, key, lower(hex(sha256)), width, height, format, digest FROM items ORDER BY position"
        )
        with writing_index(path) as index:
            while batch := rows.fetchmany(8_192):
                index.write(batch)

    def write_lists(self, folder: Path) -> None:
        """Write the excluded images as CSV: rejected files, duplicates, near copies and test images."""
        self._write_csv(folder / REJECTED, "source,key,reason,detail", "SELECT * FROM rejected ORDER BY rowid")
        self._write_csv(
            folder / DUPLICATES,
            "source,key,duplicate_of_source,duplicate_of_key",
            "SELECT d.source, d.key, i.source, i.key FROM duplicates d JOIN items i USING (position) ORDER BY d.rowid",
        )
        if self._filter and self._filter.knows_pool:
            # Groups, each begun by the image that stayed.
            self._write_csv(
                folder / NEAR_DUPLICATES,
                "group,kept,source,key,bits,similarity",
                """
                SELECT dense_rank() OVER (ORDER BY position), kept, source, key, bits, round(similarity, 4) FROM (
                    SELECT position, 1 AS kept, source, key, 0 AS bits, 1.0 AS similarity, 0 AS place FROM items
                    WHERE position IN (SELECT position FROM near_copies)
                    UNION ALL SELECT position, 0, source, key, bits, similarity, rowid FROM near_copies
                ) ORDER BY position, kept DESC, place
                """,
            )
        if self._filter and self._filter.keep_out:
            self._write_csv(
                folder / KEPT_OUT,
                "source,key,test_source,test_key,bits,similarity",
                "SELECT source, key, known_source, known_key, bits, round(similarity, 4) FROM kept_out ORDER BY rowid",
            )

    def _write_csv(self, path: Path, header: str, query: str) -> None:
        with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle)
            writer.writerow(header.split(","))
            writer.writerows(self.database.execute(query))

    def _flush(self) -> None:
        """Flush pending images: append the pixels, add the rows to the open transaction.

        Of identical files the first gives the pixels and the shortest path names the image: plain.jpg, not
        copy_of_plain.jpg.
        """
        waiting, self._waiting = self._waiting, []
        known = self._known([decoded.sha256 for _, decoded in waiting])
        filtered = self._filter.filter([decoded for _, decoded in waiting]) if self._filter and waiting else None
        rows = Rows(rejected=self._rejected)
        self._rejected = []
        stays: dict[int, int] = {}  # place in the batch -> position
        for place, (record, decoded) in enumerate(waiting):
            if filtered and (found := filtered.kept_out.get(place)):
                rows.kept_out.append((record.source, record.key, found.source, found.key, found.bits, found.similarity))
                continue
            kept = known.get(decoded.sha256)
            if kept is not None:
                position, source, key = kept
                if (len(record.key), record.key) < (len(key), key):
                    known[decoded.sha256] = (position, record.source, record.key)
                    rows.renamed.append((record.source, record.key, position))
                else:
                    source, key = record.source, record.key
                rows.duplicates.append((source, key, position))
                continue
            if filtered and (copy := filtered.copy_at(place)):
                position = copy.place if place in filtered.of_pool else stays[copy.place]
                rows.near_copies.append((record.source, record.key, position, copy.bits, copy.similarity))
                continue
            stays[place] = self.images
            known[decoded.sha256] = (self.images, record.source, record.key)
            rows.items.append(
                (
                    self.images,
                    record.source,
                    record.key,
                    decoded.sha256,
                    decoded.width,
                    decoded.height,
                    decoded.format,
                    decoded.digest,
                )
            )
            self._packed.append(decoded.pixels)
        if self._filter and self._filter.knows_pool and filtered:
            hashes = filtered.hashes[list(stays)]
            self._filter.learn(hashes)
            rows.hashes = list(zip(stays.values(), hashes.tolist(), strict=True))
        rows.write(self.database)

    def _known(self, hashes: list[bytes]) -> dict[bytes, tuple[int, str, str]]:
        """Return position, source and key of the pool's images of these files, by hash."""
        rows = self.database.execute(
            f"SELECT sha256, position, source, key FROM items WHERE sha256 IN ({','.join('?' * len(hashes))})", hashes
        )
        return {sha256: (position, source, key) for sha256, position, source, key in rows}

    def _put(self, name: str, value: Any) -> None:
        self.database.execute("INSERT OR REPLACE INTO progress VALUES (?, ?)", (name, json.dumps(value)))


def begun_with(folder: Path) -> dict[str, Any] | None:
    """Return the settings of an unfinished ingest, read-only; None if it has not begun.

    Raises:
        KD3Error: the database is damaged, none of ours, or a link.
    """
    refuse_links([folder / DATABASE])
    if not (folder / DATABASE).is_file():
        return None
    database = sqlite3.connect(folder / DATABASE)
    try:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables - TABLES:
            raise KD3Error(f"{folder / DATABASE} is no database of kd3; choose another --out")
        if "progress" not in tables:
            return None
        row = database.execute("SELECT value FROM progress WHERE name = 'request'").fetchone()
    except sqlite3.DatabaseError as problem:
        raise KD3Error(f"{folder / DATABASE} is damaged ({problem}); remove {folder} and begin again") from None
    finally:
        database.close()
    value: dict[str, Any] | None = json.loads(row[0]) if row else None
    return value
