"""Near copies of known images: re-encoded, rescaled, brightened, slightly cropped, found by hashes of their appearance.

Perceptual hash (63 bits) and thumbnail vector (256 numbers) of an image; both survive slight edits. The hash is pHash:
the signs of an image's low frequencies about their median. The thumbnail is the image at 16 x 16. Hashes find
candidates among many images, thumbnails distinguish copies from two views of plain ground. Both are linear in the
pixels up to their last step, hence a batch costs two matrix products: 2 µs an image of 32 x 32 on one core, where
imagehash (4.3) takes some 200 and needs PyWavelets.

Index of millions of hashes: finds all within a few bits of given ones. Multi-index hashing (Norouzi, Punjani, Fleet:
Fast Search in Hamming Space with Multi-Index Hashing, CVPR 2012): where hashes differ in at most 11 bits, one of their
quarters differs in at most two. Each quarter has a table from its 16 bits to the hashes that have them; newer hashes
are compared one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np

SIDE = 32  # of the image whose frequencies are taken
FREQUENCIES = 8  # lowest ones in each direction; without the constant one, the brightness
THUMBNAIL_SIDE = 16
BATCH_BYTES = 4 << 20  # of pixels as floats, small enough for a cache
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as JPEG has it

# Chosen on images re-encoded, rescaled, brightened and cropped, and on pairs among 55,000 that are none:
# docs/near-duplicates.md has the figures.
MOST_BITS = 10  # of difference between hashes of copies
LEAST_SIMILARITY = 0.92  # between thumbnails of copies


def perceptual_hashes(images: np.ndarray) -> np.ndarray:
    """Return the hash of each image: (n, 3, N, N) uint8 -> (n,) uint64, of which the top bit is 0."""
    frequencies = _frequencies(images.shape[-1])
    hashes = np.empty(len(images), dtype=np.uint64)
    for here, values in _reduced(images, frequencies):
        waves = values.reshape(len(values), -1)[:, 1:]
        middle = np.partition(waves, waves.shape[1] // 2, axis=1)[:, waves.shape[1] // 2, None]
        bits = np.zeros((len(values), 64), dtype=bool)
        bits[:, 1:] = waves > middle
        hashes[here] = np.packbits(bits, axis=1).view(">u8")[:, 0]
    return hashes


def thumbnails(images: np.ndarray) -> np.ndarray:
    """Return the thumbnail of each image: (n, 3, N, N) uint8 -> (n, 256) float32 of mean 0 and length 1.

    The product of two thumbnails is the correlation of the images at 16 x 16, in grey: -1 to 1. That of a plain image
    is 0.
    """
    side = images.shape[-1]
    found = np.empty((len(images), THUMBNAIL_SIDE**2), dtype=np.float32)
    for here, values in _reduced(images, _averages(side, THUMBNAIL_SIDE)):
        grey = values.reshape(len(values), -1)
        grey = grey - grey.mean(axis=1, keepdims=True)
        found[here] = grey / np.maximum(np.linalg.norm(grey, axis=1, keepdims=True), 1e-3)
    return found


def bits_between(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the Hamming distances of hashes; the arrays broadcast."""
    bits: np.ndarray = np.bitwise_count(one ^ other)
    return bits


def _reduced(images: np.ndarray, matrix: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield places and matrix @ grey @ matrix.T of the images there, batch by batch."""
    side = images.shape[-1]
    # Grey is a sum over the colours: it goes into the matrix, and the colours lie below one another.
    grey = np.concatenate([matrix * weight for weight in LUMA], axis=1)
    size = max(1, BATCH_BYTES // (12 * side**2))
    for start in range(0, len(images), size):
        here = slice(start, start + size)
        yield here, grey @ images[here].astype(np.float32).reshape(-1, 3 * side, side) @ matrix.T


@lru_cache(maxsize=8)
def _frequencies(side: int) -> np.ndarray:
    """Return the matrix (8, side) that takes a side to 32 by area and then its lowest cosines (DCT-II)."""
    wave, place = np.arange(FREQUENCIES)[:, None], np.arange(SIDE)[None]
    cosines = np.cos(np.pi * wave * (2 * place + 1) / (2 * SIDE))
    matrix: np.ndarray = (cosines @ _averages(side, SIDE)).astype(np.float32)
    return matrix


@lru_cache(maxsize=8)
def _averages(side: int, cells: int) -> np.ndarray:
    """Return the matrix (cells, side) that averages over equal cells; pixels are weighted by their overlap."""
    edges = np.linspace(0, side, cells + 1)
    pixel = np.arange(side)
    inside = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    matrix: np.ndarray = (np.maximum(inside, 0) * cells / side).astype(np.float32)
    return matrix


QUARTERS = 4
KEYS = 1 << 16
NEW = 8_192  # hashes that are compared one by one before the tables are rebuilt
PAIRS = 1 << 22  # candidates that are held at a time
FLIPS = np.array(
    [0, *(1 << bit for bit in range(16)), *((1 << one) | (1 << other) for one, other in combinations(range(16), 2))],
    dtype=np.uint16,
)

assert MOST_BITS < QUARTERS * 3


class HashIndex:
    """Hashes (uint64) by their place, in the order in which they were added."""

    def __init__(self) -> None:
        self._hashes = np.empty(NEW, dtype=np.uint64)
        self._count = self._in_tables = 0
        self._order = np.empty((QUARTERS, 0), dtype=np.int32)  # places, sorted by a quarter's key
        self._starts = np.zeros((QUARTERS, KEYS + 1), dtype=np.int64)  # where a key's places begin

    def __len__(self) -> int:
        return self._count

    def add(self, hashes: np.ndarray) -> None:
        """Append hashes: (n,) uint64."""
        needed = self._count + len(hashes)
        if needed > len(self._hashes):
            grown = np.empty(max(needed, 2 * len(self._hashes)), dtype=np.uint64)
            grown[: self._count] = self._hashes[: self._count]
            self._hashes = grown
        self._hashes[self._count : needed] = hashes
        self._count = needed
        if self._count - self._in_tables > NEW:
            self._make_tables()

    def near(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return all pairs at most `MOST_BITS` apart: places in `hashes`, places in the index, bits; each (pairs,)."""
        found = [self._near_in_tables(hashes), self._near_new(hashes)]
        query, place, bits = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.lexsort((place, query))
        return query[order], place[order], bits[order]

    def _make_tables(self) -> None:
        keys = _quarters(self._hashes[: self._count])
        self._order = np.stack([np.argsort(column, kind="stable").astype(np.int32) for column in keys.T])
        counts = np.stack([np.bincount(column, minlength=KEYS) for column in keys.T])
        self._starts[:, 1:] = counts.cumsum(axis=1)
        self._in_tables = self._count

    def _near_new(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        new = self._hashes[self._in_tables : self._count]
        parts = []
        rows = max(1, PAIRS // max(1, len(new)))
        for start in range(0, len(hashes), rows):
            bits = bits_between(hashes[start : start + rows, None], new)
            query, place = np.nonzero(bits <= MOST_BITS)
            parts.append((query + start, place + self._in_tables, bits[query, place]))
        return _joined(parts)

    def _near_in_tables(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self._in_tables == 0:
            return _joined([])
        parts = []
        probes = _quarters(hashes)[:, :, None] ^ FLIPS  # (n, 4, 137)
        for quarter in range(QUARTERS):
            keys = probes[:, quarter].ravel()
            starts, counts = self._starts[quarter, keys], np.diff(self._starts[quarter])[keys]
            ends = counts.cumsum()
            begin = 0
            while begin < len(keys):  # as many probes as the memory for their candidates allows, at least one
                before = ends[begin - 1] if begin else 0
                end = max(begin + 1, int(np.searchsorted(ends, before + PAIRS, side="right")))
                here = slice(begin, end)
                total = int(ends[end - 1] - before)
                offsets = np.arange(total) - np.repeat(ends[here] - counts[here] - before, counts[here])
                place = self._order[quarter][np.repeat(starts[here], counts[here]) + offsets]
                query = np.repeat(np.arange(begin, end) // len(FLIPS), counts[here])
                bits = bits_between(hashes[query], self._hashes[place])
                close = bits <= MOST_BITS
                parts.append((query[close], place[close].astype(np.int64), bits[close]))
                begin = end
        query, place, bits = _joined(parts)
        # Several quarters may have found a pair.
        _, once = np.unique(query * np.int64(self._count) + place, return_index=True)
        return query[once], place[once], bits[once]


def _quarters(hashes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(hashes).view(np.uint16).reshape(-1, QUARTERS)


def _joined(
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    nothing = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8))
    query, place, bits = (np.concatenate(arrays) for arrays in zip(nothing, *parts, strict=True))
    return query, place, bits


Thumbnails = Callable[[np.ndarray], np.ndarray]  # places (n,) -> thumbnails (n, 256)


@dataclass(frozen=True, slots=True)
class Copy:
    """A match: the known image and its similarity."""

    place: int  # of the known image
    bits: int  # in which the hashes differ
    similarity: float  # of the thumbnails: 1 is equal


class NearCopies:
    """Known images by their hashes; `thumbnails_at` returns the thumbnails of candidates."""

    def __init__(self, thumbnails_at: Thumbnails) -> None:
        self._index = HashIndex()
        self._thumbnails_at = thumbnails_at

    def __len__(self) -> int:
        return len(self._index)

    def add(self, hashes: np.ndarray) -> None:
        """Append images."""
        self._index.add(hashes)

    def find(self, hashes: np.ndarray, thumbnails_of: Thumbnails) -> dict[int, Copy]:
        """Return the most similar known image that each image is a copy of, by place in `hashes`.

        `thumbnails_of` returns the queried images' thumbnails.
        """
        query, place, bits = self._index.near(hashes)
        if not len(query):
            return {}
        asked, back = np.unique(query, return_inverse=True)
        known, forth = np.unique(place, return_inverse=True)
        similarity = np.einsum("nd,nd->n", thumbnails_of(asked)[back], self._thumbnails_at(known)[forth])
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
    similarity = np.einsum("nd,nd->n", thumbnails(images[query]), thumbnails(images[place]))
    # In order: earlier images are already decided.
    for one, other, apart, alike in zip(query.tolist(), place.tolist(), bits, similarity, strict=True):
        if alike < LEAST_SIMILARITY or one in gone or other in gone or other in copies:
            continue
        best = copies.get(one)
        if best is None or alike > best.similarity:
            copies[one] = Copy(other, int(apart), float(alike))
    return copies
