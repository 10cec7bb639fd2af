"""Overlap of a pool with a student's test images."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np

from kd3 import console
from kd3.pool.image_pool import ImagePool
from kd3.pool.kept_out import Found, KnownImages
from kd3.pool.perceptual_hash import looks, perceptual_hashes
from kd3.storage.atomic import replacing

BLOCK_BYTES = 32 << 20
HASHES = 4_096  # compared at a time
WORTH_A_BAR = 100_000  # images


def overlap(pool: ImagePool, tested: KnownImages) -> dict[int, Found]:
    """Return the test image that each pool image equals or nearly copies, by position in the pool.

    Nothing is compared if the ingest excluded exactly these images.
    """
    if was_kept_clear(pool, tested):
        return {}
    hashes = pool_hashes(pool)
    found: dict[int, Found] = {}
    for start in range(0, len(pool), HASHES):

        def looks_of(places: np.ndarray, start: int = start) -> np.ndarray:
            return looks(pool.read(places + start))

        near = tested.near(hashes[start : start + HASHES], looks_of)
        found |= {start + place: known for place, known in near.items()}
    if pool.path is not None:
        for position, (file,) in enumerate(pool.index_rows(("sha256",))):
            if known := tested.same_file(bytes.fromhex(file)):
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
    return pool.path / f"hashes-{pool.content_hash[:16]}.npy"
