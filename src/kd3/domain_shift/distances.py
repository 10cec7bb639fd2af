"""Distances between Gaussians and between clouds of points.

Clouds are (n, d) and (m, d) float64. The `weights` of a cloud are (R, n): each point's count in each of R resamples,
whole numbers that sum to n; the result is then (R,), one per resample.
"""

from __future__ import annotations

import numpy as np
from scipy import linalg
from torch import Tensor

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
