"""Detection of images that an ingest excludes: test images, and near copies of pool images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kd3.pool.decode import Decoded
from kd3.pool.kept_out import Found, KnownImages
from kd3.pool.near_copies import Copy, Looks, NearCopies, copies_within
from kd3.pool.perceptual_hash import looks, perceptual_hashes


@dataclass(frozen=True, slots=True)
class Sieved:
    """Findings in a batch, by place in it; `hashes` (n,) are those of all its images."""

    hashes: np.ndarray
    kept_out: dict[int, Found] = field(default_factory=dict)
    of_pool: dict[int, Copy] = field(default_factory=dict)  # the place is a position in the pool
    of_batch: dict[int, Copy] = field(default_factory=dict)  # the place is one in the batch, and stays

    def copy_at(self, place: int) -> Copy | None:
        """Return the image of which this one is a near copy."""
        return self.of_pool.get(place) or self.of_batch.get(place)


class Sieve:
    """Filter for images before they enter a pool.

    `looks_at` returns the thumbnails of pool images by position; None allows near copies.
    """

    def __init__(self, keep_out: Sequence[KnownImages] = (), looks_at: Looks | None = None) -> None:
        self.keep_out = keep_out
        self._near = None if looks_at is None else NearCopies(looks_at)

    @property
    def knows_pool(self) -> bool:
        """Whether it needs the pool's own images."""
        return self._near is not None

    def learn(self, hashes: np.ndarray) -> None:
        """Record images added to the pool, in order."""
        if self._near is not None:
            self._near.add(hashes)

    def sift(self, batch: Sequence[Decoded]) -> Sieved:
        """Return the images of a batch to exclude from the pool."""
        images = np.stack([decoded.pixels for decoded in batch])
        hashes = perceptual_hashes(images)
        files = [decoded.sha256 for decoded in batch]
        kept_out: dict[int, Found] = {}
        for known in self.keep_out:
            kept_out = known.find(files, hashes, lambda places: looks(images[places])) | kept_out
        if self._near is None:
            return Sieved(hashes, kept_out)
        of_pool = self._near.find(hashes, lambda places: looks(images[places]))
        of_batch = copies_within(hashes, images, gone=of_pool.keys() | kept_out.keys())
        return Sieved(hashes, kept_out, of_pool, of_batch)
