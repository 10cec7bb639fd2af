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
    """A known image of which another is a copy."""

    place: int  # of the known image
    bits: int  # in which the hashes differ
    similarity: float  # of the looks: 1 is the same


class NearCopies:
    """Known images by their hashes; `looks_at` gives the look of those that come into question."""

    def __init__(self, looks_at: Looks) -> None:
        self._index = HashIndex()
        self._looks_at = looks_at

    def __len__(self) -> int:
        return len(self._index)

    def add(self, hashes: np.ndarray) -> None:
        """Make known the images behind the last ones."""
        self._index.add(hashes)

    def find(self, hashes: np.ndarray, looks_of: Looks) -> dict[int, Copy]:
        """Return, by place in `hashes`, of which known image an image is a copy: the most similar one.

        `looks_of` gives the looks of the images asked about.
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

    What is `gone` does not stay, and is not asked about.
    """
    copies: dict[int, Copy] = {}
    index = HashIndex()
    index.add(hashes)
    query, place, bits = index.near(hashes)
    earlier = place < query
    query, place, bits = query[earlier], place[earlier], bits[earlier]
    similarity = np.einsum("nd,nd->n", looks(images[query]), looks(images[place]))
    # In the order of the images: what an earlier one is has been settled.
    for one, other, apart, alike in zip(query.tolist(), place.tolist(), bits, similarity, strict=True):
        if alike < LEAST_SIMILARITY or one in gone or other in gone or other in copies:
            continue
        best = copies.get(one)
        if best is None or alike > best.similarity:
            copies[one] = Copy(other, int(apart), float(alike))
    return copies
