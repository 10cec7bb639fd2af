"""Derived pools: a part of a pool's images, changed, some replaced by another pool's."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from kd3 import console
from kd3.config.settings import build
from kd3.errors import KD3Error
from kd3.pool.changes import change_images
from kd3.pool.decode import pixel_digest
from kd3.pool.derivation import Choice, Derivation, choose, left_out_of, sorted_positions
from kd3.pool.image_pool import ImagePool
from kd3.pool.index_file import COLUMNS, INDEX, read_index, writing_index
from kd3.pool.manifest import DERIVING, NAME, Counts, content_hash, read_manifest, write_manifest
from kd3.pool.output_folder import LOCK, check_place, check_settings
from kd3.pool.packed import PARTS, PackedImages, images_per_part
from kd3.pool.watch import watched
from kd3.storage.atomic import write_json
from kd3.storage.lock import exclusive
from kd3.storage.versioned import read_versioned

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
        "derived_from": source.content_hash,
        "share": share,
        "without": left_out_of(left_out),
        "mixed_with": None if other is None else other.content_hash,
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
            ExitStack() as looks,
            console.progress("derive", count, "images") as bar,
            writing_index(folder / INDEX) as index,
        ):
            for pool in (source, other):
                if pool is not None:  # must not compute new digests from damaged pixels
                    looks.enter_context(watched(pool, to_the_end=True))
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
    return compress(pool.index_rows(COLUMNS[:-1]), wanted)
