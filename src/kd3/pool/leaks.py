"""Test images that a pool must not hold: left out of an ingest with near copies, or found in a finished pool."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kd3.config.records import Fit
from kd3.pool.decode import Decoded, DecodeSettings
from kd3.pool.decoding import decode_records
from kd3.pool.image_pool import ImagePool
from kd3.pool.near_copies import Copy, NearCopies, Thumbnails, copies_within, perceptual_hashes, thumbnails
from kd3.pool.pool_files import HASHES, INDEX, sha256_from
from kd3.runtime import console
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import replacing
from kd3.sources.files import shown
from kd3.sources.finding import list_records
from kd3.sources.record import counted

BATCH = 256


@dataclass(frozen=True, slots=True)
class Found:
    """The known image that matches another one."""

    source: str
    key: str
    bits: int  # in which the hashes differ
    similarity: float  # of the thumbnails: 1 is equal


class KnownImages:
    """Fingerprints of images, which recognise their copies: 300 bytes and a name each."""

    def __init__(self) -> None:
        self.names: list[tuple[str, str]] = []  # source and key
        self._files: dict[bytes, int] = {}  # by the hash of the whole file
        self._thumbnails: list[np.ndarray] = []  # float16, batch by batch
        self._near = NearCopies(self._thumbnails_at)

    def __len__(self) -> int:
        return len(self.names)

    def add(self, names: Sequence[tuple[str, str]], files: Sequence[bytes], images: np.ndarray) -> None:
        """Add images (n, 3, N, N) uint8 with their names and the SHA-256 of their files."""
        for number, file in enumerate(files, start=len(self.names)):
            self._files.setdefault(file, number)
        self.names.extend(names)
        self._thumbnails.append(thumbnails(images).astype(np.float16))
        self._near.add(perceptual_hashes(images))

    def find(self, files: Sequence[bytes], hashes: np.ndarray, thumbnails_of: Thumbnails) -> dict[int, Found]:
        """Return the known image that each image matches, by place: the same file, or a near copy.

        `files` are the SHA-256 of the images asked about, `thumbnails_of` gives their thumbnails.
        """
        found = self.near(hashes, thumbnails_of)
        for place, file in enumerate(files):
            if known := self.same_file(file):
                found[place] = known
        return dict(sorted(found.items()))

    def near(self, hashes: np.ndarray, thumbnails_of: Thumbnails) -> dict[int, Found]:
        """Return, by place in `hashes`, the known image of which an image is a near copy."""
        return {
            place: Found(*self.names[copy.place], bits=copy.bits, similarity=copy.similarity)
            for place, copy in self._near.find(hashes, thumbnails_of).items()
        }

    def same_file(self, file: bytes) -> Found | None:
        """Return the known image whose file has this SHA-256."""
        number = self._files.get(file)
        return None if number is None else Found(*self.names[number], bits=0, similarity=1.0)

    def fingerprint(self) -> str:
        """Return a hash of the files' contents, for any order and names."""
        return fingerprint(self._files)

    def _thumbnails_at(self, places: np.ndarray) -> np.ndarray:
        if len(self._thumbnails) > 1:
            self._thumbnails = [np.concatenate(self._thumbnails)]
        found: np.ndarray = self._thumbnails[0][places].astype(np.float32)
        return found


def fingerprint(files: Iterable[bytes]) -> str:
    """Return a hash of files by their SHA-256, for any order and names."""
    return hashlib.sha256(b"".join(sorted(set(files)))).hexdigest()


def read_known(
    source: str, *, image_size: int, fit: Fit, workers: int | None, found: Sequence[str] | None = None
) -> KnownImages:
    """Return the images of a folder, an archive, or any other source; `found` is what it was expanded to, if it was.

    They are scaled as the pool's are, so that copies match. Files that are no images are skipped with a warning.

    Raises:
        KD3Error: there is none, or the source cannot be read.
    """
    known = KnownImages()
    records = list_records([source] if found is None else found)
    settings = DecodeSettings(image_size, fit, min_side=1)  # test images of any size count
    waiting: list[tuple[str, str, Decoded]] = []
    unusable: Counter[str] = Counter()

    def take() -> None:
        if waiting:
            names = [(where, key) for where, key, _ in waiting]
            images = np.stack([decoded.pixels for _, _, decoded in waiting])
            known.add(names, [decoded.sha256 for _, _, decoded in waiting], images)
            waiting.clear()

    with console.progress(f"keep out {shown(source)}", None, "files") as bar:
        for outcome in decode_records(records, settings, workers=workers):
            result = outcome.result
            if isinstance(result, Decoded):
                waiting.append((outcome.record.source, outcome.record.key, result))
            else:
                unusable[result.reason] += 1
            if len(waiting) == BATCH:
                take()
            bar.advance()
        take()
    why = counted(unusable)
    if not len(known):
        raise KD3Error(f"--keep-out {shown(source)} holds no image that can be read" + (f": {why}" if why else ""))
    if why:
        console.warn(f"files in --keep-out {shown(source)} are not usable images and exclude nothing: {why}")
    return known


@dataclass(frozen=True, slots=True)
class Filtered:
    """Findings in a batch, by place in it; `hashes` (n,) are those of all its images."""

    hashes: np.ndarray
    kept_out: dict[int, Found] = field(default_factory=dict)
    of_pool: dict[int, Copy] = field(default_factory=dict)  # the place is a position in the pool
    of_batch: dict[int, Copy] = field(default_factory=dict)  # the place is one in the batch, and stays

    def copy_at(self, place: int) -> Copy | None:
        """Return the image of which this one is a near copy."""
        return self.of_pool.get(place) or self.of_batch.get(place)


class EntryFilter:
    """Filter for images before they enter a pool.

    `thumbnails_at` returns the thumbnails of pool images by position; None allows near copies.
    """

    def __init__(self, keep_out: Sequence[KnownImages] = (), thumbnails_at: Thumbnails | None = None) -> None:
        self.keep_out = keep_out
        self._near = None if thumbnails_at is None else NearCopies(thumbnails_at)

    @property
    def knows_pool(self) -> bool:
        """Whether it needs the pool's own images."""
        return self._near is not None

    def learn(self, hashes: np.ndarray) -> None:
        """Record images added to the pool, in order."""
        if self._near is not None:
            self._near.add(hashes)

    def filter(self, batch: Sequence[Decoded]) -> Filtered:
        """Return the images of a batch to exclude from the pool."""
        images = np.stack([decoded.pixels for decoded in batch])
        hashes = perceptual_hashes(images)
        files = [decoded.sha256 for decoded in batch]
        kept_out: dict[int, Found] = {}
        for known in self.keep_out:
            kept_out = known.find(files, hashes, lambda places: thumbnails(images[places])) | kept_out
        if self._near is None:
            return Filtered(hashes, kept_out)
        of_pool = self._near.find(hashes, lambda places: thumbnails(images[places]))
        of_batch = copies_within(hashes, images, gone=of_pool.keys() | kept_out.keys())
        return Filtered(hashes, kept_out, of_pool, of_batch)


BLOCK_BYTES = 32 << 20
AT_ONCE = 4_096  # hashes compared at a time
WORTH_A_BAR = 100_000  # images


def overlap(pool: ImagePool, tested: KnownImages) -> dict[int, Found]:
    """Return the test image that each pool image equals or nearly copies, by position in the pool.

    Nothing is compared if the ingest excluded exactly these images.
    """
    if was_kept_clear(pool, tested):
        return {}
    hashes = pool_hashes(pool)
    found: dict[int, Found] = {}
    for start in range(0, len(pool), AT_ONCE):

        def thumbnails_of(places: np.ndarray, start: int = start) -> np.ndarray:
            return thumbnails(pool.read(places + start))

        near = tested.near(hashes[start : start + AT_ONCE], thumbnails_of)
        found |= {start + place: known for place, known in near.items()}
    if pool.path is not None:
        for position, (file,) in enumerate(pool.index_rows(("sha256",))):
            if known := tested.same_file(sha256_from(file, pool.path / INDEX)):
                found[position] = known
    return dict(sorted(found.items()))


def was_kept_clear(pool: ImagePool, tested: KnownImages) -> bool:
    """Return whether `kd3 ingest --keep-out` excluded these images from a pool."""
    if pool.path is None:
        return False
    return tested.fingerprint() in {known.content for known in pool.manifest.kept_out}


def pool_hashes(pool: ImagePool) -> np.ndarray:
    """Return the perceptual hashes of a pool's images: (N,) uint64; cached beside it if possible."""
    path = None if pool.path is None else _place(pool)
    if path is not None:
        with suppress(OSError, ValueError):
            kept: np.ndarray = np.load(path, allow_pickle=False)
            if kept.shape == (len(pool),) and kept.dtype == np.uint64:
                return kept
    hashes = np.empty(len(pool), dtype=np.uint64)
    block = max(1, BLOCK_BYTES // (3 * pool.image_size**2))
    hidden = len(pool) < WORTH_A_BAR
    with console.progress("hash the pool's images", len(pool), "images", hidden=hidden) as bar:
        for start in range(0, len(pool), block):
            images = pool.read(slice(start, min(start + block, len(pool))))
            hashes[start : start + len(images)] = perceptual_hashes(images)
            bar.advance(len(images))
    if path is not None:
        keep_hashes(path, hashes)
    return hashes


def keep_hashes(path: Path, hashes: np.ndarray) -> None:
    """Cache hashes beside a pool; a read-only pool is hashed again next time."""
    with suppress(OSError), replacing(path) as temporary, temporary.open("wb") as handle:
        np.save(handle, hashes, allow_pickle=False)


def _place(pool: ImagePool) -> Path:
    assert pool.path is not None
    size = "" if pool.stored is pool else f"-{pool.image_size}"
    return pool.path / HASHES.format(pool.content_hash[:16] + size)
