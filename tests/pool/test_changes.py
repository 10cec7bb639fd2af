"""Changes of images: invariants, random draws, and monotonic strength."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kd3.pool import CHANGES, change_images
from kd3.pool.changes import KINDS
from kd3.runtime.errors import KD3Error

NAMES = sorted(CHANGES)
EXACTLY_MONOTONE = ["edges", "greyscale", "noise"]

sides = st.sampled_from([2, 3, 8, 9, 32])
batches = sides.flatmap(lambda side: arrays(np.uint8, st.tuples(st.integers(1, 3), *map(st.just, (3, side, side)))))
shares = st.floats(0, 1)


def scenes(count: int = 24, side: int = 32) -> np.ndarray:
    """Smooth pictures with a hard-edged patch and a little grain, about as steep as photographs."""
    draw = np.random.default_rng(5)
    rows, columns = np.mgrid[0:side, 0:side] / side
    waves = draw.uniform(0, 2, (count, 3, 4))
    turns = waves[..., :1, None] * rows + waves[..., 1:2, None] * columns + waves[..., 2:3, None]
    pictures = 127 + 90 * np.sin(2 * np.pi * turns) * waves[..., 3:, None] / 2
    for picture in pictures:
        top, left = draw.integers(2, side - 14, 2)
        picture[:, top : top + 12, left : left + 9] = draw.uniform(0, 255, (3, 1, 1))
    return np.clip(pictures + draw.normal(0, 4, pictures.shape), 0, 255).astype(np.uint8)


def distance(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Root of the mean squared difference of each image (B,), in grey levels."""
    result: np.ndarray = np.sqrt(((some.astype(np.float64) - others) ** 2).mean((1, 2, 3)))
    return result


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=30)
@given(images=batches, share=shares, seed=st.integers(0, 2**31 - 1))
def test_changed_images_are_images_and_the_given_ones_untouched(
    name: str, images: np.ndarray, share: float, seed: int
) -> None:
    before = images.copy()
    positions = np.arange(len(images))
    changed = change_images(name, share * CHANGES[name].most, images, positions, seed)
    assert (changed.shape, changed.dtype) == (images.shape, np.uint8)
    assert not np.shares_memory(changed, images)
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=20)
@given(images=batches)
def test_strength_zero_is_the_image_itself(name: str, images: np.ndarray) -> None:
    np.testing.assert_array_equal(change_images(name, 0.0, images, np.arange(len(images))), images)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=20)
@given(images=batches, share=shares, seed=st.integers(0, 99), first=st.integers(0, 10**9))
def test_an_image_does_not_depend_on_its_neighbours(
    name: str, images: np.ndarray, share: float, seed: int, first: int
) -> None:
    strength = share * CHANGES[name].most
    positions = first + np.arange(len(images))
    together = change_images(name, strength, images, positions, seed)
    backwards = change_images(name, strength, images[::-1], positions[::-1], seed)[::-1]
    alone = [change_images(name, strength, images[n : n + 1], positions[n : n + 1], seed) for n in range(len(images))]
    np.testing.assert_array_equal(together, backwards)
    np.testing.assert_array_equal(together, np.concatenate(alone))


@pytest.mark.parametrize("name", EXACTLY_MONOTONE)
@settings(deadline=None, max_examples=30)
@given(images=batches, strengths=st.tuples(shares, shares).map(sorted))
def test_every_image_moves_away_with_the_strength(name: str, images: np.ndarray, strengths: list[float]) -> None:
    near, far = (change_images(name, strength, images, np.arange(len(images))) for strength in strengths)
    # Rounding to bytes may turn a step of nothing by one.
    assert (distance(far, images) >= distance(near, images) - 1e-3).all()


@pytest.mark.parametrize("name", NAMES)
def test_pictures_move_away_step_by_step(name: str) -> None:
    images = scenes()
    steps = np.linspace(0, CHANGES[name].most, 9)
    away = [distance(change_images(name, step, images, np.arange(len(images))), images).mean() for step in steps]
    assert away[0] == 0
    assert (np.diff(away) > 0).all(), away


def test_off_topic_replaces_the_share_and_those_of_a_smaller_share_among_them() -> None:
    images, positions = np.tile(scenes(), (20, 1, 1, 1)), np.arange(480)
    replaced = [
        (change_images("off-topic", share, images, positions, 3) != images).any((1, 2, 3))
        for share in (0.1, 0.5, 0.9, 1)
    ]
    assert [part.mean() for part in replaced] == pytest.approx([0.1, 0.5, 0.9, 1], abs=0.06)
    for small, large in itertools.pairwise(replaced):
        assert not (small & ~large).any()


def test_off_topic_pictures_have_nothing_of_the_image_and_are_of_every_kind() -> None:
    images, positions = scenes(60), np.arange(60)
    pictures = change_images("off-topic", 1.0, images, positions)
    np.testing.assert_array_equal(pictures, change_images("off-topic", 1.0, 255 - images, positions))
    colours = [len(np.unique(picture.reshape(3, -1), axis=1).T) for picture in pictures]
    assert min(colours) == 1  # a flat colour
    assert max(colours) > 500  # noise
    assert not np.array_equal(pictures, change_images("off-topic", 1.0, images, positions, seed=1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [2, 8, 64])
def test_every_kind_of_off_topic_picture_is_its_draws_alone(kind, side) -> None:
    one, again, other = (kind(side, np.random.default_rng(seed)).convert("RGB") for seed in (0, 0, 1))
    assert one.size == (side, side)
    assert one.tobytes() == again.tobytes() != other.tobytes()


def test_noise_differs_by_position_and_seed_and_has_the_deviation_that_was_asked_for() -> None:
    grey = np.full((2, 3, 64, 64), 128, np.uint8)
    one, two = change_images("noise", 0.1, grey, np.array([0, 1]), 0)
    (other,) = change_images("noise", 0.1, grey[:1], np.array([0]), 1)
    assert not np.array_equal(one, two)
    assert not np.array_equal(one, other)
    assert one.std() == pytest.approx(25.5, rel=0.03)


def test_greyscale_leaves_no_colour() -> None:
    changed = change_images("greyscale", 1.0, scenes(), np.arange(24))
    assert (changed == changed[:, :1]).all()


def test_posterise_leaves_two_levels() -> None:
    assert set(np.unique(change_images("posterise", 1.0, scenes(), np.arange(24)))) == {0, 255}


def test_edges_are_dark_on_white() -> None:
    image = np.full((1, 3, 16, 16), 40, np.uint8)
    image[..., 8:] = 200
    drawing = change_images("edges", 1.0, image, np.array([0]))[0, 0]
    assert (drawing[:, 7:9] == 0).all()
    assert (drawing[:, :7] == 255).all()
    assert (drawing[:, 9:] == 255).all()


def test_flat_areas_are_not_drawn() -> None:
    grain = np.random.default_rng(0).integers(126, 131, (1, 3, 32, 32), dtype=np.uint8)
    assert change_images("edges", 1.0, grain, np.array([0])).mean() > 235


def test_low_resolution_leaves_what_two_pixels_hold() -> None:
    images = scenes()
    changed = change_images("low-resolution", 1.0, images, np.arange(24))
    assert len(np.unique(changed[0, 0])) > 1
    assert changed.mean() == pytest.approx(images.mean(), abs=5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strength", [-0.01, 1.01, float("nan")])
def test_strength_out_of_range_is_reported(name: str, strength: float) -> None:
    with pytest.raises(KD3Error, match=f"of change {name} is out of range; it may be 0 to"):
        change_images(name, strength, scenes(1), np.array([0]))


def test_unknown_change_is_reported() -> None:
    with pytest.raises(KD3Error, match=r"unknown change 'grayscale'; did you mean 'greyscale'\?"):
        change_images("grayscale", 0.5, scenes(1), np.array([0]))


@pytest.mark.parametrize("images", [np.zeros((3, 8, 8), np.uint8), np.zeros((1, 3, 8, 8))])
def test_array_that_is_no_batch_is_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must be uint8"):
        change_images("blur", 0.1, images, np.array([0]))


def test_positions_must_be_one_for_each_image() -> None:
    with pytest.raises(ValueError, match="zip"):
        change_images("blur", 0.1, scenes(2), np.array([0]))
