"""Near copies of known images: re-encoded, rescaled, brightened, slightly cropped."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from kd3.pool.hash_index import HashIndex
from kd3.pool.perceptual_hash import LEAST_SIMILARITY, looks

Looks = Callable[[np.ndarray], np.ndarray]  # places (n,) -> looks (n, 256)


@dataclass(frozen=True, slots=True)
class Copy:
    """A match: the known image and its similarity."""

    place: int  # of the known image
    bits: int  # in which the hashes differ
    similarity: float  # of the thumbnails: 1 is equal


class NearCopies:
    """Known images by their hashes; `looks_at` returns the thumbnails of candidates."""

    def __init__(self, looks_at: Looks) -> None:
        self._index = HashIndex()
        self._looks_at = looks_at

    def __len__(self) -> int:
        return len(self._index)

    def add(self, hashes: np.ndarray) -> None:
        """Append images."""
        self._index.add(hashes)

    def find(self, hashes: np.ndarray, looks_of: Looks) -> dict[int, Copy]:
        """Return the most similar known image that each image is a copy of, by place in `hashes`.

        `looks_of` returns the queried images' thumbnails.
        """
        query, place, bits = self._index.near(hashes)
        if not len(query):
            return {}
        asked, back = np.unique(query, return_inverse=True)
        known, forth = np.unique(place, return_inverse=True)
        similarity = np.einsum("nd,nd->n", looks_of(asked)[back], self._looks_at(known)[forth])
        copies: dict[int, Copy] = {}
        for number in np.lexsort((place, -similarity)):  # of equal ones the first
            if similarity[number] < LEAST_SIMILARITY:
                break
            copies.setdefault(
                int(query[number]), Copy(int(place[number]), int(bits[number]), float(similarity[number]))
            )
        return copies


def copies_within(hashes: np.ndarray, images: np.ndarray, gone: Collection[int] = ()) -> dict[int, Copy]:
    """Return which images of a small batch are copies of an earlier one that stays.

    Images in `gone` are excluded.
    """
    copies: dict[int, Copy] = {}
    index = HashIndex()
    index.add(hashes)
    query, place, bits = index.near(hashes)
    earlier = place < query
    query, place, bits = query[earlier], place[earlier], bits[earlier]
    similarity = np.einsum("nd,nd->n", looks(images[query]), looks(images[place]))
    # In order: earlier images are already decided.
    for one, other, apart, alike in zip(query.tolist(), place.tolist(), bits, similarity, strict=True):
        if alike < LEAST_SIMILARITY or one in gone or other in gone or other in copies:
            continue
        best = copies.get(one)
        if best is None or alike > best.similarity:
            copies[one] = Copy(other, int(apart), float(alike))
    return copies
