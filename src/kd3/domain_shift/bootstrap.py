"""Uncertainty of a distance, from resampled images."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

COVERAGE = 0.95
Distance = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Estimate(NamedTuple):
    """A value and its 95% interval."""

    value: float
    low: float
    high: float


def estimate(
    distance: Distance, a: np.ndarray, b: np.ndarray, *, resamples: int, seed: int, signed: bool = False
) -> Estimate:
    """Return a distance of two clouds, and its interval for other images of the same kind.

    Both clouds are drawn anew with replacement. The spread of the resampled distances is laid around the
    value itself: resamples contain copies, which inflate a biased distance. So the
    interval covers chance, not the distance's own bias. Ends below 0 are 0, unless it is `signed`.
    """
    value = once(distance, a, b)
    generator = np.random.default_rng(seed)
    drawn = distance(a, b, _weights(generator, len(a), resamples), _weights(generator, len(b), resamples))
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(drawn - drawn.mean(), [tail, 1 - tail]) + value
    return Estimate(value, float(low if signed else max(low, 0.0)), float(high))


def once(distance: Distance, a: np.ndarray, b: np.ndarray) -> float:
    """Return a distance of two clouds without resampling."""
    return float(distance(a, b, np.ones((1, len(a))), np.ones((1, len(b))))[0])


def _weights(generator: np.random.Generator, count: int, resamples: int) -> np.ndarray:
    return generator.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)
