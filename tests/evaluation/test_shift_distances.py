"""Distances against closed forms and general laws."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from kd3.evaluation.shift_distances import (
    at_equal_size,
    diagonal_wasserstein,
    estimate,
    frechet,
    frechet_diagonal,
    frechet_gaussians,
    narrowed,
    once,
    polynomial_mmd,
    sliced_wasserstein,
)

ALL = [frechet, sliced_wasserstein, polynomial_mmd]


def cloud(seed, count=40, width=3, shift=0.0):
    return np.random.default_rng(seed).standard_normal((count, width)) + shift


def test_diagonal_wasserstein_is_the_closed_form():
    ours = torch.tensor([1.0, 0.0]), torch.tensor([4.0, 1.0])
    theirs = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 9.0])
    # ((1 + (2 - 1)^2) / 2 + (0 + (1 - 3)^2) / 4) / 2
    assert float(diagonal_wasserstein(*ours, *theirs, scale=torch.tensor([2.0, 4.0]))) == pytest.approx(1.0)


def test_frechet_of_commuting_gaussians_is_the_closed_form():
    turn = np.linalg.qr(cloud(0, 4, 4))[0]
    a, b = np.array([1.0, 4.0, 9.0, 0.0]), np.array([4.0, 4.0, 1.0, 2.0])
    means = np.array([1.0, 2.0, 0.0, 0.0]), np.zeros(4)
    got = frechet_gaussians(means[0], turn @ np.diag(a) @ turn.T, means[1], turn @ np.diag(b) @ turn.T)
    assert got == pytest.approx(5 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), abs=1e-6)


def test_frechet_of_gaussians_that_do_not_commute():
    root_a, root_b = cloud(1, 3), cloud(2, 3)
    a, b = root_a @ root_a.T, root_b @ root_b.T
    values = np.linalg.eigvals(a @ b).real  # tr (A^1/2 B A^1/2)^1/2, another way
    expected = np.trace(a) + np.trace(b) - 2 * np.sqrt(values).sum()
    assert frechet_gaussians(np.zeros(3), a, np.zeros(3), b) == pytest.approx(expected, rel=1e-6)


def test_frechet_of_fewer_points_than_dimensions_is_finite():
    value = once(frechet, cloud(0, 5, 40), cloud(1, 7, 40))
    assert np.isfinite(value)
    assert value > 0
    assert once(frechet, cloud(0, 5, 40), cloud(0, 5, 40)) == pytest.approx(0, abs=1e-6)


def test_sliced_wasserstein_of_a_moved_cloud_is_the_mean_projection_of_the_move():
    move = np.array([3.0, 0.0, 4.0])
    points = cloud(0)
    # E|<theta, move>| = |move| / 2 on the sphere in three dimensions
    assert once(sliced_wasserstein, points, points + move) == pytest.approx(5 / 2, rel=0.1)


def test_sliced_wasserstein_in_one_dimension_is_the_wasserstein_distance_of_unequal_counts():
    a, b = cloud(0, 11, 1), cloud(1, 23, 1, 0.5)
    assert once(sliced_wasserstein, a, b) == pytest.approx(stats.wasserstein_distance(a[:, 0], b[:, 0]))


def test_mmd_of_three_points_by_hand():
    a, b = np.array([[0.0], [1.0]]), np.array([[2.0], [3.0]])
    # kernel (xy + 1)^3: within a k(0,1) = 1, within b k(2,3) = 343, between 1, 1, 27, 64 -> mean 93 / 4
    assert once(polynomial_mmd, a, b) == pytest.approx(1 + 343 - 2 * 93 / 4)


@pytest.mark.parametrize("distance", ALL)
def test_a_resample_is_the_cloud_it_stands_for(distance):
    """Weights say how often a point counts; only MMD leaves pairs of copies out."""
    a, b = cloud(0, 6), cloud(1, 6)
    weights = np.array([[2.0, 0, 1, 1, 2, 0]])
    repeated = np.repeat(a, weights[0].astype(int), axis=0)
    got, expected = distance(a, b, weights, np.ones((1, 6)))[0], once(distance, repeated, b)
    if distance is polynomial_mmd:
        assert got != pytest.approx(expected)
    else:
        assert got == pytest.approx(expected, abs=1e-9)


def test_resampled_mmd_is_unbiased():
    a, b = cloud(0, 30), cloud(1, 30, shift=0.5)
    generator = np.random.default_rng(0)
    draws = [generator.multinomial(30, np.full(30, 1 / 30), size=20000).astype(float) for _ in range(2)]
    drawn = polynomial_mmd(a, b, *draws)
    assert drawn.mean() == pytest.approx(once(polynomial_mmd, a, b), abs=4 * drawn.std() / np.sqrt(20000))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 30), st.integers(2, 30), st.integers(1, 6))
@pytest.mark.parametrize("distance", ALL)
def test_distances_are_symmetric(distance, seed, n, m, width):
    a, b = cloud(seed, n, width), cloud(seed + 1, m, width, 1.0)
    assert once(distance, a, b) == pytest.approx(once(distance, b, a), rel=1e-6, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 30), st.floats(-3, 3))
def test_what_moves_or_turns_both_clouds_changes_nothing(seed, n, move):
    a, b = cloud(seed, n), cloud(seed + 1, n, 3, 1.0)
    turn = np.linalg.qr(cloud(seed + 2, 3, 3))[0]
    assert once(frechet, a @ turn + move, b @ turn + move) == pytest.approx(once(frechet, a, b), abs=1e-6)
    assert frechet_diagonal(a + move, b + move) == pytest.approx(frechet_diagonal(a, b))
    moved = once(sliced_wasserstein, a + move, b + move)
    assert moved == pytest.approx(once(sliced_wasserstein, a, b), abs=1e-9)
    assert once(polynomial_mmd, a @ turn, b @ turn) == pytest.approx(once(polynomial_mmd, a, b), abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 30))
def test_a_cloud_is_no_distance_from_itself(seed, n):
    a = cloud(seed, n)
    assert once(frechet, a, a) == pytest.approx(0, abs=1e-6)
    assert once(sliced_wasserstein, a, a) == pytest.approx(0, abs=1e-12)
    assert frechet_diagonal(a, a) == 0


def test_the_interval_covers_the_true_discrepancy():
    """Of one-dimensional normals with means 0 and 1 the kernel's moments are known."""
    # E k(x, y) of independent x, y with moments m1, m2, m3 of x and l1, l2, l3 of y: 1 + 3 m1 l1 + 3 m2 l2 + m3 l3
    moments = np.array([[0, 1, 0], [1, 2, 4]])
    true = sum(w * ((moments[0] - moments[1])[i] ** 2) for i, w in enumerate([3, 3, 1]))
    trials = 100
    covered = 0
    for trial in range(trials):
        a, b = cloud(2 * trial, 120, 1), cloud(2 * trial + 1, 120, 1, 1.0)
        got = estimate(polynomial_mmd, a, b, resamples=200, seed=trial, signed=True)
        assert got.low <= got.value <= got.high
        covered += got.low <= true <= got.high
    assert covered >= 85


def test_the_interval_is_repeatable_and_never_below_zero_for_a_distance():
    a, b = cloud(0, 20), cloud(1, 20)
    first = estimate(frechet, a, b, resamples=50, seed=0)
    assert first == estimate(frechet, a, b, resamples=50, seed=0)
    assert first.low >= 0


def test_very_wide_features_are_narrowed_without_loss_where_they_are_few():
    a, b = cloud(0, 20, 600), cloud(1, 30, 600, 0.2)
    slim = narrowed(a, b)
    assert [side.shape for side in slim] == [(20, 512), (30, 512)]
    # Fewer images than directions: all distances between them survive.
    assert once(frechet, *slim) == pytest.approx(frechet_gaussians_of(a, b), rel=1e-6)
    assert narrowed(a[:, :100], b[:, :100])[0].shape == (20, 100)


def frechet_gaussians_of(a, b):
    return frechet_gaussians(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))


def test_equal_sizes_leave_room_for_two_draws_of_the_larger_side():
    a, b = cloud(0, 90), cloud(1, 30)
    assert at_equal_size(frechet, a, b, seed=0).images == 30
    assert at_equal_size(frechet, a[:40], b, seed=0).images == 20
    even = at_equal_size(frechet, a, cloud(2, 90), seed=0)
    assert even.images == 45
    assert even.low <= even.mean <= even.high
    assert even.mean == pytest.approx(even.same, rel=1)
    assert at_equal_size(frechet, a[:2], b[:2], seed=0).same is None


@pytest.mark.parametrize(("signed", "low"), [(True, -90.0), (False, 0.0)])
def test_the_interval_is_the_spread_of_the_resamples_around_the_value(signed, low):
    def distance(a, b, weights_a, weights_b):
        return np.array([5.0]) if len(weights_a) == 1 else np.arange(201.0)

    found = estimate(distance, cloud(0), cloud(1), resamples=201, seed=0, signed=signed)
    assert found == pytest.approx((5.0, low, 100.0))
