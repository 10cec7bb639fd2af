"""MixDistribution: the documented statistics, on any batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd3.losses.mixdistribution import mix_distribution, mix_statistics, sample_beta


def batch(seed, images=4):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(images, 3, 1, 1, generator=generator, dtype=torch.float64) + 0.5
    return torch.randn(images, 3, 6, 5, generator=generator, dtype=torch.float64) * scale + scale


def naive_mix(images, partner, mix):
    result = torch.empty_like(images)
    for i in range(len(images)):
        for c in range(images.shape[1]):
            own, other = images[i, c].flatten().tolist(), images[partner[i], c].flatten().tolist()

            def statistics(values):
                mean = sum(values) / len(values)
                return mean, (sum((v - mean) ** 2 for v in values) / len(values) + 1e-6) ** 0.5

            (mu_i, sigma_i), (mu_j, sigma_j) = statistics(own), statistics(other)
            share = float(mix[i])
            gamma = share * sigma_i + (1 - share) * sigma_j
            beta = share * mu_i + (1 - share) * mu_j
            result[i, c] = torch.tensor([gamma * (v - mu_i) / sigma_i + beta for v in own], dtype=torch.float64).view(
                6, 5
            )
    return result


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_equals_a_loop_over_every_pixel(seed):
    images = batch(seed)
    generator = torch.Generator().manual_seed(seed)
    partner, mix = (
        torch.randperm(4, generator=generator),
        torch.rand(4, generator=generator, dtype=torch.float64),
    )
    torch.testing.assert_close(mix_statistics(images, partner, mix), naive_mix(images, partner, mix), rtol=0, atol=1e-9)


def test_a_mixture_of_one_changes_nothing():
    images = batch(0)
    mixed = mix_statistics(images, torch.tensor([1, 2, 3, 0]), torch.ones(4))
    torch.testing.assert_close(mixed, images, rtol=0, atol=1e-9)


def test_a_mixture_of_nought_takes_the_partners_statistics_whole():
    images = batch(1)
    partner = torch.tensor([1, 2, 3, 0])
    mixed = mix_statistics(images, partner, torch.zeros(4))
    torch.testing.assert_close(mixed.mean((2, 3)), images[partner].mean((2, 3)))
    torch.testing.assert_close(mixed.std((2, 3)), images[partner].std((2, 3)), rtol=1e-5, atol=1e-6)


def test_a_flat_image_stays_finite():
    images = torch.zeros(2, 3, 4, 4)
    assert torch.isfinite(mix_distribution(images, generator=torch.Generator().manual_seed(0))).all()


def test_the_same_generator_gives_the_same_view():
    images = batch(2)
    first = mix_distribution(images, generator=torch.Generator().manual_seed(5))
    second = mix_distribution(images, generator=torch.Generator().manual_seed(5))
    assert torch.equal(first, second)
    assert not torch.equal(first, mix_distribution(images, generator=torch.Generator().manual_seed(6)))


@pytest.mark.parametrize("parameter", [0.1, 0.5, 1.0, 4.0])
def test_beta_draws_have_the_right_mean_and_variance(parameter):
    draws = sample_beta(40_000, parameter, generator=torch.Generator().manual_seed(0))
    assert ((draws >= 0) & (draws <= 1)).all()
    assert float(draws.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(draws.var()) == pytest.approx(1 / (4 * (2 * parameter + 1)), rel=0.03)


def test_a_small_parameter_mostly_keeps_or_swaps():
    draws = sample_beta(20_000, 0.1, generator=torch.Generator().manual_seed(0))
    # P(X < 0.01) of Beta(0.1, 0.1), from the incomplete beta function.
    assert float((draws < 0.01).double().mean()) == pytest.approx(0.319, abs=0.01)


def test_the_scales_multiply_contrast_and_mean():
    images = batch(3)
    partner, mix = torch.tensor([1, 2, 3, 0]), torch.tensor([0.2, 0.9, 0.5, 0.0])
    plain = mix_statistics(images, partner, mix)
    scaled = mix_statistics(images, partner, mix, gamma_scale=0.5, beta_scale=3.0)
    mean = plain.mean((2, 3), keepdim=True)
    torch.testing.assert_close(scaled, 0.5 * (plain - mean) + 3 * mean)


def test_partners_and_mixtures_are_drawn_and_all_is_handed_on():
    images = batch(4)

    def drawn():
        return torch.Generator().manual_seed(8)

    generator = drawn()
    partner = torch.randperm(len(images), generator=generator)
    mix = sample_beta(len(images), 0.4, generator=generator)
    expected = mix_statistics(images, partner, mix, gamma_scale=0.7, beta_scale=1.3)
    mixed = mix_distribution(images, beta_parameter=0.4, gamma_scale=0.7, beta_scale=1.3, generator=drawn())
    torch.testing.assert_close(mixed, expected)
    paper = mix_distribution(images, beta_parameter=0.1, gamma_scale=1.0, beta_scale=1.0, generator=drawn())
    assert torch.equal(mix_distribution(images, generator=drawn()), paper)


def test_mixing_keeps_the_images_type():
    images = batch(2).to(torch.bfloat16)
    assert mix_statistics(images, torch.tensor([1, 0, 3, 2]), torch.full((4,), 0.5)).dtype == torch.bfloat16
