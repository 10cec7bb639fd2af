"""Intervals and bounds have their stated coverage in simulated samples."""

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from kd3.evaluation.accuracy import most, paired_difference, share

TRIALS = 4000


@pytest.mark.parametrize(("count", "images"), [(0, 7), (7, 7), (3, 11), (870, 1000)])
def test_a_share_has_wilsons_interval(count, images):
    found, known = share(count, images), binomtest(count, images).proportion_ci(method="wilson")
    assert (found.low / 100, found.high / 100) == pytest.approx((known.low, known.high), abs=1e-9)
    assert found.low <= found.value <= found.high


@pytest.mark.parametrize(("gain", "loss", "images"), [(0.03, 0.2, 60), (0.02, 0.02, 400), (0.001, 0.05, 1000)])
def test_the_paired_interval_holds_the_true_difference_in_19_of_20_samples(gain, loss, images):
    draws = np.random.default_rng(0).multinomial(images, [gain, loss, 1 - gain - loss], size=TRIALS)
    intervals = [paired_difference(int(b), int(c), images) for b, c, _ in draws]
    held = np.mean([one.low <= 100 * (gain - loss) <= one.high for one in intervals])
    assert 0.93 <= held <= 0.985


def test_pairing_makes_the_interval_narrower_than_two_shares_do():
    paired = paired_difference(20, 60, 1000)
    apart = share(840, 1000), share(880, 1000)
    widths = [one.high - one.low for one in (paired, *apart)]
    assert widths[0] < (widths[1] ** 2 + widths[2] ** 2) ** 0.5


def test_a_class_with_one_image_or_no_disagreement_has_an_interval_within_its_range():
    for gained, lost, images in [(0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 500), (0, 500, 500)]:
        found = paired_difference(gained, lost, images)
        assert -100 <= found.low <= found.value <= found.high <= 100


@pytest.mark.parametrize("rate", [0.003, 0.02, 0.11])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_bound_lies_below_the_truth_no_more_often_than_stated(rate, confidence):
    """Exactly, not by simulation: summed over all counts that a sample can have."""
    images = 350
    missed = [k for k in range(images + 1) if most(k, images, confidence) < rate]
    assert sum(binom.pmf(missed, images, rate)) <= 1 - confidence + 1e-12
    assert most(images, images, confidence) == 1


def test_a_difference_is_shown_with_its_signs():
    assert paired_difference(30, 10, 200).signed() == "+10.0 (+3.8 to +16.0)"
    assert paired_difference(10, 10, 200).signed().startswith("+0.0 (-")
    assert str(share(90, 100)) == "90.0 (82.6 to 94.5)"
