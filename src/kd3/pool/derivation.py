"""Choice of images for a derived pool, drawn so that small shares lie within large ones."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field, model_validator

from kd3.config.settings import Settings
from kd3.errors import KD3Error
from kd3.pool.changes import find_change

# Each use of a seed has its own random numbers.
SHARE_DRAWS, SLOT_DRAWS, MIXED_DRAWS = 1, 2, 3


class LeftOut(Settings):
    """Positions left out of the source, in a short form for any number of them."""

    images: int
    digest: str  # of the sorted positions


class Derivation(Settings):
    """Inputs of a derived pool; its manifest holds them as the settings."""

    derived_from: str  # content hash of the source
    share: float = Field(gt=0, le=1)
    without: LeftOut | None
    mixed_with: str | None  # content hash
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
