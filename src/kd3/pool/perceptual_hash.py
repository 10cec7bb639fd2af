"""Perceptual hash (63 bits) and thumbnail vector (256 numbers) of an image; both survive slight edits.

The hash is pHash: the signs of an image's low frequencies about their median. The look is the image at 16 x 16.
Hashes find candidates among many images, looks distinguish copies from two views of plain ground. Both are linear in
the pixels up to their last step, hence a batch costs two matrix products: 2 µs an image of 32 x 32 on one core, where
imagehash (4.3) takes some 200 and needs PyWavelets.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

SIDE = 32  # of the image whose frequencies are taken
FREQUENCIES = 8  # lowest ones in each direction; without the constant one, the brightness
LOOK_SIDE = 16
BATCH_BYTES = 4 << 20  # of pixels as floats, small enough for a cache
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as JPEG has it

# Chosen on images re-encoded, rescaled, brightened and cropped, and on pairs among 55,000 that are none:
# docs/near-duplicates.md has the figures.
MOST_BITS = 10  # of difference between hashes of copies
LEAST_SIMILARITY = 0.92  # between looks of copies


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


def looks(images: np.ndarray) -> np.ndarray:
    """Return the look of each image: (n, 3, N, N) uint8 -> (n, 256) float32 of mean 0 and length 1.

    The product of two looks is the correlation of the images at 16 x 16, in grey: -1 to 1. A plain image's look is 0.
    """
    side = images.shape[-1]
    found = np.empty((len(images), LOOK_SIDE**2), dtype=np.float32)
    for here, values in _reduced(images, _averages(side, LOOK_SIDE)):
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
