"""Index of millions of hashes: finds all within a few bits of given ones.

Multi-index hashing (Norouzi, Punjani, Fleet: Fast Search in Hamming Space with Multi-Index Hashing, CVPR 2012):
where hashes differ in at most 11 bits, one of their quarters differs in at most two. Each quarter has a table from
its 16 bits to the hashes that have them; newer hashes are compared one by one.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from kd3.pool.perceptual_hash import MOST_BITS, bits_between

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
