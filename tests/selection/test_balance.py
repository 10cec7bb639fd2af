"""Rare classes drawn more often."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd3.selection.rules import class_balance, weighted_order


@given(st.integers(1, 50), st.integers(1, 300), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_each_image_is_drawn_as_often_as_its_weight_says_give_or_take_one(count, need, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(count, generator=generator) + 0.01
    order = weighted_order(weights, need, generator=generator)
    assert len(order) == need
    drawn = torch.bincount(order, minlength=count)
    expected = weights.double() / weights.double().sum() * need
    assert ((drawn - expected).abs() <= 1 + 1e-6).all()


def test_equal_weights_draw_every_image_once():
    order = weighted_order(torch.ones(100), 100, generator=torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(100))
    assert order.tolist() != sorted(order.tolist())


def test_strength_moves_from_found_to_equal_frequencies():
    labels = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    for strength, expected in ((0.0, [900, 90, 10]), (1.0, [333, 333, 333]), (0.5, [703, 222, 74])):
        weights = class_balance(labels, strength=strength)
        order = weighted_order(weights, 1000, generator=torch.Generator().manual_seed(1))
        drawn = torch.bincount(labels[order], minlength=3)
        # Each image is right to within one draw, so that a class may be off by some.
        assert torch.allclose(drawn.float(), torch.tensor(expected).float(), rtol=0.1, atol=6), (strength, drawn)


def test_the_same_generator_draws_the_same():
    weights = torch.rand(40)
    one, two = (weighted_order(weights, 90, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert one.tolist() == two.tolist()


def test_weights_of_a_class_of_one():
    assert class_balance(torch.tensor([0, 1, 1]), strength=1.0).tolist() == [1.0, 0.5, 0.5]
