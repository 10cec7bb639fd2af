"""Split of a pool into training images and images held out for the agreement with the teacher."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kd3.errors import KD3Error
from kd3.pool import ImagePool
from kd3.training.randomness import seed_for

HOLDOUT_SHARE = 0.1


@dataclass(frozen=True)
class PoolSplit:
    """Positions in the pool, both ascending."""

    train: np.ndarray  # (N,) int64
    holdout: np.ndarray  # (M,) int64


def split_pool(pool: ImagePool, holdout: int, *, share: float = 1.0) -> PoolSplit:
    """Return the split of a pool: at most a tenth is held out, and a random share of the rest is for training.

    It depends on the pool alone, not on the run's seed, so that runs compare on the same images; a smaller share is a
    subset of a larger one.

    Raises:
        KD3Error: the pool, or the share of it, is too small.
    """
    count = min(holdout, int(len(pool) * HOLDOUT_SHARE))
    if count < 2:
        raise KD3Error(f"the pool {pool.path or ''} holds only {len(pool)} images; at least 20 are needed")
    generator = np.random.Generator(np.random.PCG64(seed_for(0, "holdout", pool.content_hash)))
    order = generator.permutation(len(pool))
    train = order[count:][: round(share * (len(pool) - count))]
    if len(train) < 2:
        raise KD3Error(f"a share of {share:g} of the pool {pool.path or ''} leaves {len(train)} images to train on")
    return PoolSplit(train=np.sort(train), holdout=np.sort(order[:count]))
