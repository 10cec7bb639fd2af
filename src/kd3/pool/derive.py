"""A pool made from a pool: a part of its images, changed, some replaced by those of another."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from kd3.config.settings import Settings, build
from kd3.pool.changes import change_images, find_change
from kd3.pool.checks import watched
from kd3.pool.decode import pixel_digest
from kd3.pool.image_pool import ImagePool
from kd3.pool.ingestion import LOCK, check_place, check_settings
from kd3.pool.listed import check_index
from kd3.pool.pool_files import (
    COLUMNS,
    DERIVING,
    INDEX,
    NAME,
    PARTS,
    Counts,
    PackedImages,
    content_hash,
    images_per_part,
    read_index,
    read_manifest,
    write_manifest,
    writing_index,
)
from kd3.runtime import console
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import exclusive, read_versioned, write_json

# Each use of a seed has its own random numbers.
SHARE_DRAWS, SLOT_DRAWS, MIXED_DRAWS = 1, 2, 3


class LeftOut(Settings):
    """Positions left out of the source, in a short form for any number of them."""

    images: int
    digest: str  # of the sorted positions


class Derivation(Settings):
    """Inputs of a derived pool; its manifest holds them as the settings."""

    derived_from: str  # identity of the source
    share: float = Field(gt=0, le=1)
    without: LeftOut | None
    mixed_with: str | None  # identity
    mixed_share: float = Field(ge=0, le=1)
    change: str | None
    strength: float
    seed: int = Field(ge=0, lt=2**31)

    @model_validator(mode="after")
    def _complete(self) -> Derivation:
        if self.change is not None:
            find_change(self.change, self.strength)
        elif self.strength != 0:
            raise ValueError(f"strength {self.strength} needs the name of a change")
        if self.mixed_share and self.mixed_with is None:
            raise ValueError(f"mixed_share {self.mixed_share} needs a pool to mix with")
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return self.model_dump(mode="json")


@dataclass(frozen=True, slots=True)
class Choice:
    """Origin of each image of a derived pool."""

    positions: np.ndarray  # (n,) int64, each in its own pool; ascending among the images of one pool
    mixed: np.ndarray  # (n,) bool: from the other pool


def choose(derivation: Derivation, images: int, left_out: np.ndarray, others: int) -> Choice:
    """Choose the origins of the images: a source of `images`, another pool of `others` images (0: none).

    `left_out` are positions (m,) of the source, sorted and unique. For the same seed and `left_out`, a smaller share is
    a subset of a larger one; the same holds for `mixed_share`.

    Raises:
        KD3Error: all images are left out, or the other pool has too few.
    """
    kept = images - len(left_out)
    if kept == 0:
        raise KD3Error(f"all {images:,} images are left out; a pool needs at least one")
    count = max(1, round(derivation.share * kept))
    mixed_count = round(derivation.mixed_share * count)
    if mixed_count > others:
        raise KD3Error(
            f"a mixed_share of {derivation.mixed_share:g} of {count:,} images needs {mixed_count:,} images, "
            f"but the pool to mix with has {others:,}"
        )
    order = _shuffled(images, SHARE_DRAWS, derivation.seed)
    if len(left_out):
        order = order[~np.isin(order, left_out)]
    positions = np.sort(order[:count])
    mixed = np.zeros(count, dtype=bool)
    mixed[_shuffled(count, SLOT_DRAWS, derivation.seed)[:mixed_count]] = True
    positions[mixed] = np.sort(_shuffled(others, MIXED_DRAWS, derivation.seed)[:mixed_count])
    return Choice(positions, mixed)


def sorted_positions(without: Any, images: int) -> np.ndarray:
    """Return positions to leave out, sorted, each once: (m,) int64.

    Raises:
        KD3Error: they are no integers, or outside a pool of so many images.
    """
    positions = np.asarray(without)
    if positions.ndim != 1 or (positions.size and positions.dtype.kind not in "iu"):
        raise KD3Error(
            f"positions to leave out must be (m,) integers, not {positions.dtype} {positions.shape}; "
            f"of a mask take np.flatnonzero"
        )
    positions = np.unique(positions.astype(np.int64))
    outside = positions[(positions < 0) | (positions >= images)]
    if outside.size:
        raise KD3Error(f"position {outside[0]} cannot be left out of a pool of {images:,} images")
    return positions


def left_out_of(positions: np.ndarray) -> LeftOut | None:
    """Return the manifest's record of sorted positions; None if there are none."""
    if not positions.size:
        return None
    digest = hashlib.sha256(positions.astype("<i8").tobytes()).hexdigest()
    return LeftOut(images=len(positions), digest=digest)


def _shuffled(count: int, use: int, seed: int) -> np.ndarray:
    order: np.ndarray = np.random.default_rng((use, seed)).permutation(count)
    return order


CHUNK_BYTES = 8 << 20  # of pixels changed between progress updates
MARK = "kd3-derivation"
MARK_VERSION = 1


def derive_pool(
    source: ImagePool | str | Path,
    out: str | Path,
    *,
    share: float = 1.0,
    change: str | None = None,
    strength: float = 0.0,
    without: np.ndarray | None = None,
    mixed_with: ImagePool | str | Path | None = None,
    mixed_share: float = 0.0,
    seed: int = 0,
) -> ImagePool:
    """Make a pool of a pool's images and return it.

    Args:
        source: a pool on disk.
        out: folder of the new pool, made if absent.
        share: of the images that `without` leaves, how many to keep (0..1, at least one image), drawn by `seed` and
            in the source's order; the images of a smaller share are among those of a larger one.
        change: a name of `CHANGES`, applied to every image, those mixed in as well.
        strength: of the change; 0 changes nothing.
        without: positions (m,) of the source's images to leave out.
        mixed_with: a pool on disk, of the same image size, ...
        mixed_share: ... whose images take the places of this share (0..1) of the images; drawn by `seed`.
        seed: of everything random, at least 0.

    Random numbers of a change depend on the seed and the image's position in `source`; positions in `mixed_with`
    continue after these. Images keep the source, key, sha256, width, height and format of their file. Images that
    become equal all stay.

    A killed derivation starts again; a finished one is returned unchanged.

    Raises:
        KD3Error: a pool cannot be read, a setting is out of range, or the output belongs to something else or to
            other settings, which is checked before anything is written; or the output cannot be written.
    """
    source, other = _on_disk(source), None if mixed_with is None else _on_disk(mixed_with)
    left_out = sorted_positions(() if without is None else without, len(source))
    request = {
        "derived_from": source.identity,
        "share": share,
        "without": left_out_of(left_out),
        "mixed_with": None if other is None else other.identity,
        "mixed_share": mixed_share,
        "change": change,
        "strength": strength,
        "seed": seed,
    }
    derivation = build(Derivation, request, where="derive_pool")
    if other is not None and other.image_size != source.image_size:
        raise KD3Error(
            f"pool {other.path} has images of {other.image_size} pixels, which cannot be mixed with the "
            f"{source.image_size} of {source.path}"
        )
    folder = Path(out)
    if (folder / NAME).is_file():
        return _finished(folder, derivation)
    choice = choose(derivation, len(source), left_out, 0 if other is None else len(other))
    for pool in (source, other):
        if pool is not None:
            check_index(pool)
    check_place(folder, [str(pool.path) for pool in (source, other) if pool is not None], ours=(NAME, DERIVING))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / LOCK, what=f"pool {folder}"):
            if not (folder / NAME).is_file():  # another process may have finished it meanwhile
                _begin(folder, derivation)
                _fill(folder, derivation, choice, source, other)
    except OSError as problem:
        raise KD3Error(f"cannot write pool {folder}: {problem}") from problem
    return _finished(folder, derivation)


def _on_disk(pool: ImagePool | str | Path) -> ImagePool:
    opened = pool if isinstance(pool, ImagePool) else ImagePool.open(pool)
    if opened.path is None:
        raise KD3Error("a pool in memory has no index to derive a pool from")
    return opened


def _finished(folder: Path, derivation: Derivation) -> ImagePool:
    check_settings(folder, read_manifest(folder).settings, derivation.to_dict())
    for name in (DERIVING, LOCK):
        (folder / name).unlink(missing_ok=True)
    return ImagePool.open(folder)


def _begin(folder: Path, derivation: Derivation) -> None:
    """Mark the folder as ours; remove the remnants of a killed derivation."""
    if (folder / DERIVING).exists():
        read_versioned(folder / DERIVING, format_name=MARK, version=MARK_VERSION)  # not someone else's
        for pattern in (PARTS, INDEX, ".*.tmp"):
            for path in folder.glob(pattern):
                path.unlink()
    write_json(folder / DERIVING, {"format": MARK, "version": MARK_VERSION, **derivation.to_dict()})


def _fill(folder: Path, derivation: Derivation, choice: Choice, source: ImagePool, other: ImagePool | None) -> None:
    started = time.monotonic()
    size, count = source.image_size, len(choice.positions)
    packed = PackedImages(folder, size, images_per_part=images_per_part(size))
    rows = _rows(choice, source, other)
    chunk = max(1, CHUNK_BYTES // packed.image_bytes)
    try:
        with (
            ExitStack() as watches,
            console.progress("derive", count, "images") as bar,
            writing_index(folder / INDEX) as index,
        ):
            for pool in (source, other):
                if pool is not None:  # must not compute new digests from damaged pixels
                    watches.enter_context(watched(pool, to_the_end=True))
            for start in range(0, count, chunk):
                part = Choice(choice.positions[start : start + chunk], choice.mixed[start : start + chunk])
                images = _pixels(part, derivation, source, other)
                index.write([(*next(rows), pixel_digest(image)) for image in images])
                for image in images:
                    packed.append(image)
                bar.advance(len(images))
        packed.sync()
        digests = packed.digests()
    finally:
        packed.close()
    write_manifest(
        folder,
        preparation=source.preparation,
        content_hash=content_hash(size, (digest for (digest,) in read_index(folder / INDEX, ("digest",)))),
        counts=Counts(found=count, kept=count, duplicates=0, rejected={}, skipped=0),
        parts=packed.parts(),
        digests=digests,
        sources=source.manifest.sources + ([] if other is None else other.manifest.sources),
        settings=derivation.to_dict(),
        seconds=time.monotonic() - started,
    )


def _pixels(part: Choice, derivation: Derivation, source: ImagePool, other: ImagePool | None) -> np.ndarray:
    """Return the images of a part of the pool, changed: uint8 (n, 3, N, N)."""
    positions, mixed = part.positions, part.mixed
    if other is None:
        images = source.read(positions)
    else:
        images = np.empty((len(positions), 3, source.image_size, source.image_size), dtype=np.uint8)
        images[~mixed] = source.read(positions[~mixed])
        images[mixed] = other.read(positions[mixed])
    if derivation.change is None:
        return images
    places = np.where(mixed, positions + len(source), positions)
    return change_images(derivation.change, derivation.strength, images, places, derivation.seed)


def _rows(choice: Choice, source: ImagePool, other: ImagePool | None) -> Iterator[tuple[Any, ...]]:
    """Yield the index rows of the chosen images, without the digests."""
    own = _rows_at(source, choice.positions[~choice.mixed])
    others: Iterator[tuple[Any, ...]] = iter(())
    if other is not None:
        others = _rows_at(other, choice.positions[choice.mixed])
    for mixed in choice.mixed:
        yield next(others if mixed else own)


def _rows_at(pool: ImagePool, positions: np.ndarray) -> Iterator[tuple[Any, ...]]:
    wanted = np.zeros(len(pool), dtype=bool)
    wanted[positions] = True
    return compress(pool.index_rows(list(COLUMNS)[:-1]), wanted)
