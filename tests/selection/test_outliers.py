"""Images of a pool unlike anything the teacher was trained on."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kd3.selection.rules import is_mixture, outlying, select_inliers


def distances(near: int, far: int, *, times: float, shift: float = 1.0) -> torch.Tensor:
    """So many images around a distance, and so many that are farther by a factor."""
    draw = torch.Generator().manual_seed(near + far)
    around = shift * (1 + 0.3 * torch.rand(near + far, generator=draw))
    around[near:] *= times
    return around


def test_rubbish_is_farther_than_the_nearest_images():
    found = outlying(distances(100, 900, times=5))
    assert found[100:].all()
    assert not found[:100].any()
    assert is_mixture(distances(100, 900, times=5))


@given(st.floats(0.01, 1000), st.integers(20, 400))
def test_a_shift_of_the_whole_pool_makes_no_outliers(shift, count):
    assert not outlying(distances(count, 0, times=1, shift=shift)).any()


def test_a_clean_pool_with_some_odd_images_is_no_mixture():
    assert not is_mixture(distances(600, 400, times=5))
    assert is_mixture(distances(400, 600, times=5))


def test_what_is_left_fills_a_batch_or_all_is_taken():
    outliers = torch.tensor([True, False, True, False, False])
    assert select_inliers(outliers).index.tolist() == [1, 3, 4]
    assert select_inliers(outliers, at_least=3).index.tolist() == [1, 3, 4]
    assert select_inliers(outliers, at_least=4).index.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf"), 1.0]])
def test_distances_must_be_there_and_finite(values):
    with pytest.raises(ValueError, match=r"empty pool|not finite"):
        outlying(torch.tensor(values))


def test_the_nearest_twentieth_is_the_measure_and_two_and_a_half_times_it_the_bound():
    """Of 21 images the second nearest: places 0 to 20, a twentieth of them below it."""
    values = torch.tensor([1.0, 2.0, *[4.9] * 9, 5.0, *[5.1] * 9])
    order = torch.randperm(21, generator=torch.Generator().manual_seed(0))
    assert outlying(values[order]).tolist() == (values[order] > 5).tolist()
