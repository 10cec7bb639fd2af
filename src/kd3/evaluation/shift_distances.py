"""Distances between Gaussians and clouds of points, with their uncertainty: a pool's features against a reference's.

Distances between Gaussians and between clouds of points. Clouds are (n, d) and (m, d) float64. The `weights` of a
cloud are (R, n): each point's count in each of R resamples, whole numbers that sum to n; the result is then (R,), one
per resample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy import linalg
from torch import Tensor

from kd3.runtime import console

DIRECTIONS = 128  # of the sliced distance: its error from few directions is then about a twentieth
_ROWS = 1024  # of a kernel matrix held at once


def diagonal_wasserstein(
    mean_a: Tensor, variance_a: Tensor, mean_b: Tensor, variance_b: Tensor, *, scale: Tensor
) -> Tensor:
    """Return the squared 2-Wasserstein distance of Gaussians with diagonal covariance, mean over channels.

    Per channel ((mean_a - mean_b)^2 + (s_a - s_b)^2) / scale, s the standard deviations. Shapes: (C,) -> ().

    Source: Dowson, Landau, The Fréchet distance between multivariate normal distributions (1982).
    """
    means = (mean_a - mean_b).square()
    deviations = (variance_a.sqrt() - variance_b.sqrt()).square()
    return ((means + deviations) / scale).mean()


def frechet_gaussians(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """Return |mean_a - mean_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), in squared feature units, never below 0.

    The last trace is the sum of the singular values of A^1/2 B^1/2, which is real and finite also
    where covariances have no full rank (fewer points than dimensions). Shapes: (d,), (d, d).

    Source: Dowson and Landau (1982), equation 16; for features of networks FID (arXiv 1706.08500), equation 6.
    """
    gap = float(((mean_a - mean_b) ** 2).sum())
    cross = float(linalg.svdvals(_root(cov_a) @ _root(cov_b)).sum())
    return max(gap + float(np.trace(cov_a) + np.trace(cov_b)) - 2 * cross, 0.0)


def _root(covariance: np.ndarray) -> np.ndarray:
    """Return the symmetric square root of a positive semidefinite matrix; negative rounding errors count as 0."""
    values, vectors = linalg.eigh(covariance)
    root: np.ndarray = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    return root


def frechet(a: np.ndarray, b: np.ndarray, weights_a: np.ndarray, weights_b: np.ndarray) -> np.ndarray:
    """Return the Fréchet distance between Gaussians fitted to two clouds, (R,).

    Biased upwards, most with few points: two samples of one distribution have a positive
    distance. Compare values at equal n only.
    """
    return np.array(
        [
            frechet_gaussians(*_gaussian(a, one), *_gaussian(b, other))
            for one, other in zip(weights_a, weights_b, strict=True)
        ]
    )


def _gaussian(points: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    total = weights.sum()
    mean = weights @ points / total
    away = (points - mean) * np.sqrt(weights)[:, None]
    return mean, away.T @ away / (total - 1)


def frechet_diagonal(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Fréchet distance with diagonal covariances: sum over dimensions, in squared feature units."""
    means = a.mean(axis=0) - b.mean(axis=0)
    deviations = a.std(axis=0, ddof=1) - b.std(axis=0, ddof=1)
    return float((means**2 + deviations**2).sum())


def sliced_wasserstein(
    a: np.ndarray, b: np.ndarray, weights_a: np.ndarray, weights_b: np.ndarray, *, seed: int = 0
) -> np.ndarray:
    """Return the 1-Wasserstein distance of the clouds' projections, mean over random directions, (R,), feature units.

    In one dimension it is the area between both distribution functions, so that n and m may differ.

    Source: Bonneel et al., Sliced and Radon Wasserstein Barycenters of Measures (2015), definition 4, order 1.
    """
    directions = np.random.default_rng(seed).standard_normal((a.shape[1], DIRECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    shares = np.concatenate([weights_a / len(a), -weights_b / len(b)], axis=1)
    total = np.zeros(len(shares))
    for along_a, along_b in zip((a @ directions).T, (b @ directions).T, strict=True):
        places = np.concatenate([along_a, along_b])
        order = np.argsort(places)
        gap = np.cumsum(shares[:, order[:-1]], axis=1)
        total += np.abs(gap, out=gap) @ np.diff(places[order])
    distances: np.ndarray = total / DIRECTIONS
    return distances


def polynomial_mmd(a: np.ndarray, b: np.ndarray, weights_a: np.ndarray, weights_b: np.ndarray) -> np.ndarray:
    """Return the squared maximum mean discrepancy with kernel (x.y / d + 1)^3, unbiased, (R,), no unit.

    Unbiased values may be negative. Pairs of a point with its own copy in a resample are excluded, as pairs with itself
    are, so resamples are unbiased, too.

    Source: Demystifying MMD GANs (arXiv 1801.01401), equation 4 and section 4 (the kernel inception distance).
    """
    within_a, within_b = _pairs_within(a, weights_a), _pairs_within(b, weights_b)
    between = _pairs(a, b, weights_a, weights_b) / (len(a) * len(b))
    discrepancy: np.ndarray = within_a + within_b - 2 * between
    return discrepancy


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    inner = a @ b.T
    inner /= a.shape[1]
    inner += 1
    cubed: np.ndarray = inner * inner * inner
    return cubed


def _pairs(a: np.ndarray, b: np.ndarray, weights_a: np.ndarray, weights_b: np.ndarray) -> np.ndarray:
    """Return the sum over all pairs of weight * weight * kernel, (R,); a part of the kernel matrix at a time."""
    total: np.ndarray = np.zeros(len(weights_a))
    for start in range(0, len(a), _ROWS):
        rows = slice(start, start + _ROWS)
        total += ((weights_a[:, rows] @ _kernel(a[rows], b)) * weights_b).sum(axis=1)
    return total


def _pairs_within(points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean kernel over pairs of different points, (R,)."""
    own = ((points**2).sum(axis=1) / points.shape[1] + 1) ** 3
    sums = _pairs(points, points, weights, weights) - weights**2 @ own
    count = len(points)
    # Mean weight of a pair: 1 without resampling, (n - 1) / n where n points are drawn with replacement.
    resampled = np.where((weights == 1).all(axis=1), 1.0, (count - 1) / count)
    means: np.ndarray = sums / (count * (count - 1) * resampled)
    return means


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


RESAMPLES, RESAMPLES_WIDE = 200, 50
WIDE = 128  # features; from there on a Fréchet distance takes a noticeable part of a second
MOST_FEATURES = 512  # wider ones are turned to their main directions, or the roots would take minutes
DRAWS = 5


@dataclass(frozen=True)
class AtEqualSize:
    """A distance between equally many images of both sides, over several draws."""

    images: int  # of either side
    draws: int
    mean: float
    low: float  # the smallest of the draws
    high: float
    same: float | None  # mean between two separate draws of the larger side: the value without any shift


@dataclass(frozen=True)
class FeatureDistance:
    """One distance between pool and reference."""

    name: str
    all_images: Estimate
    equal_size: AtEqualSize


@dataclass(frozen=True)
class ClassShift:
    """One class: pool images predicted as it, and reference images labelled as it."""

    name: str
    pool_images: int
    reference_images: int
    mean_distance: float | None  # Euclidean, between mean features; None with fewer than two images on a side
    frechet_diagonal: float | None


@dataclass(frozen=True)
class FeatureShift:
    """Pool and reference in the teacher's feature space."""

    reference: str
    pool_images: int
    reference_images: int
    features: str  # their origin, in words
    distances: list[FeatureDistance]
    per_class: list[ClassShift]  # empty if the reference has no labels
    skipped: dict[str, int]  # unusable reference files, by reason

    def distance(self, name: str) -> FeatureDistance:
        """Return a distance by its name."""
        return next(distance for distance in self.distances if distance.name == name)


def feature_distances(pool: np.ndarray, reference: np.ndarray, *, seed: int) -> list[FeatureDistance]:
    """Return the Fréchet, sliced Wasserstein and MMD distances of two sets of features, (n, d) and (m, d).

    Each with the interval of `estimate`, and again at equal n: a Fréchet distance of few images is too large,
    so compare it with `same`, the value for two draws of one side.
    """
    resamples = RESAMPLES if pool.shape[1] <= WIDE else RESAMPLES_WIDE
    kinds: list[tuple[str, Distance, bool]] = [
        ("frechet", frechet, False),
        ("sliced_wasserstein", partial(sliced_wasserstein, seed=seed), False),
        ("mmd", polynomial_mmd, True),
    ]
    found = []
    with console.progress("compare features", len(kinds), "distances") as bar:
        for name, distance, signed in kinds:
            whole = estimate(distance, pool, reference, resamples=resamples, seed=seed, signed=signed)
            found.append(FeatureDistance(name, whole, at_equal_size(distance, pool, reference, seed=seed)))
            bar.advance()
    return found


def at_equal_size(distance: Distance, pool: np.ndarray, reference: np.ndarray, *, seed: int) -> AtEqualSize:
    """Return a distance at equal sizes, between both sides and within the larger one."""
    generator = np.random.default_rng(seed)
    larger = reference if len(reference) >= len(pool) else pool
    size = max(2, min(len(reference), len(pool), len(larger) // 2))
    values = [once(distance, *(_some(generator, side, size)[0] for side in (pool, reference))) for _ in range(DRAWS)]
    same = None
    if len(larger) >= 2 * size:
        same = float(np.mean([once(distance, *_some(generator, larger, size, sets=2)) for _ in range(DRAWS)]))
    return AtEqualSize(size, len(values), float(np.mean(values)), min(values), max(values), same)


def _some(generator: np.random.Generator, points: np.ndarray, size: int, *, sets: int = 1) -> list[np.ndarray]:
    """Return separate sets of `size` of the points each."""
    order = generator.permutation(len(points))
    return [points[order[number * size : (number + 1) * size]] for number in range(sets)]


def narrowed(pool: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both sets of features in the main directions of the two together, if they are very wide."""
    if pool.shape[1] <= MOST_FEATURES:
        return pool, reference
    both = np.concatenate([pool, reference])
    centre = both.mean(axis=0)
    _, vectors = np.linalg.eigh(np.cov(both, rowvar=False))
    directions = vectors[:, -MOST_FEATURES:]
    # The centre goes back in: the MMD's kernel depends on it.
    return (pool - centre) @ directions + centre @ directions, (reference - centre) @ directions + centre @ directions


def class_shifts(
    pool: np.ndarray, predicted: np.ndarray, reference: np.ndarray, labels: np.ndarray, names: list[str]
) -> list[ClassShift]:
    """Return each class's distances; the pool's classes are the teacher's predictions."""
    found = []
    for label, name in enumerate(names):
        ours, theirs = pool[predicted == label], reference[labels == label]
        enough = min(len(ours), len(theirs)) >= 2
        found.append(
            ClassShift(
                name=name,
                pool_images=len(ours),
                reference_images=len(theirs),
                mean_distance=float(np.linalg.norm(ours.mean(axis=0) - theirs.mean(axis=0))) if enough else None,
                frechet_diagonal=frechet_diagonal(ours, theirs) if enough else None,
            )
        )
    return found
