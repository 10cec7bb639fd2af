"""A pool's features compared with a reference's: three distances with their uncertainty, and one per class."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from kd3 import console
from kd3.domain_shift.bootstrap import Distance, Estimate, estimate, once
from kd3.domain_shift.distances import frechet, frechet_diagonal, polynomial_mmd, sliced_wasserstein

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

    Each with the interval of `bootstrap.estimate`, and again at equal n: a Fréchet distance of few images is too large,
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
