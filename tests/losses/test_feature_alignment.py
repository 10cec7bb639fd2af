"""Weighted feature alignment against a slow loop and its laws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd3.losses import alignment_weights, feature_alignment, match_size


def naive_alignment(projected, teacher, weights):
    total, count = 0.0, 0
    for image in range(projected.shape[0]):
        for channel in range(projected.shape[1]):
            for row in range(projected.shape[2]):
                for column in range(projected.shape[3]):
                    place = (image, channel, row, column)
                    total += float(weights[image]) * (float(projected[place]) - float(teacher[place])) ** 2
                    count += 1
    return total / count


def maps(seed, *, batch=3, channels=4, side=2):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, channels, side, side)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_equals_a_loop_over_every_value(seed):
    student, teacher = maps(seed)
    weights = torch.rand(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    loss = feature_alignment(student, teacher, weights=weights)
    assert float(loss) == pytest.approx(naive_alignment(student, teacher, weights), abs=1e-9)


def test_relative_is_the_loop_divided_by_the_teachers_energy():
    student, teacher = maps(0)
    ones = torch.ones(3, dtype=torch.float64)
    energy = sum(float(v) ** 2 for v in teacher.flatten()) / teacher.numel()
    expected = naive_alignment(student, teacher, ones) / energy
    assert float(feature_alignment(student, teacher, relative=True)) == pytest.approx(expected, abs=1e-9)


def test_relative_does_not_depend_on_the_scale_of_the_features():
    student, teacher = maps(1)
    small = feature_alignment(student, teacher, relative=True)
    large = feature_alignment(student * 100, teacher * 100, relative=True)
    assert float(small) == pytest.approx(float(large), rel=1e-9)


def test_is_zero_for_equal_maps_and_positive_otherwise():
    student, teacher = maps(2)
    assert float(feature_alignment(teacher, teacher)) == 0
    assert float(feature_alignment(student, teacher)) > 0


def test_pools_the_larger_map_to_the_smaller_ones_size():
    teacher = torch.arange(16.0).view(1, 1, 4, 4)
    pooled = torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]])
    assert float(feature_alignment(pooled, teacher)) == pytest.approx(0)
    assert float(feature_alignment(teacher, pooled)) == pytest.approx(0)


def test_weights_are_the_sigmoid_of_the_distance_of_the_logits():
    student = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    teacher = torch.tensor([[4.0, 6.0], [0.0, 0.0]], dtype=torch.float64)
    weights = alignment_weights(student, teacher)
    assert weights.tolist() == pytest.approx([1 / (1 + math.exp(-5)), 0.5], abs=1e-9)


def test_no_gradient_flows_through_weights_or_teacher():
    student, teacher = maps(3)
    student.requires_grad_()
    teacher.requires_grad_()
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    weights = alignment_weights(logits, torch.zeros(3, 5, dtype=torch.float64))
    feature_alignment(student, teacher, weights=weights, relative=True).backward()
    assert student.grad is not None
    assert teacher.grad is None
    assert logits.grad is None


def test_gradient_is_right():
    student, teacher = maps(4)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: feature_alignment(s, teacher, relative=True), student)


def test_bfloat16_features_are_summed_in_float32():
    student = torch.zeros(2, 3, 4, 4, dtype=torch.bfloat16)
    assert feature_alignment(student, student + 1).dtype == torch.float32


def test_refuses_maps_that_do_not_match():
    with pytest.raises(ValueError, match="must agree in batch size and channels"):
        feature_alignment(torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, 4))


@pytest.mark.parametrize(
    ("size", "other", "result"),
    [
        ((4, 6), (2, 3), (2, 3)),
        ((2, 3), (4, 6), (2, 3)),
        ((4, 6), (4, 3), (4, 3)),
        ((3, 6), (6, 3), (3, 3)),
        ((5, 7), (5, 7), (5, 7)),
    ],
)
def test_maps_that_are_not_square_are_matched_side_by_side(size, other, result):
    draw = torch.Generator().manual_seed(0)
    feature_map = torch.randn(2, 3, *size, generator=draw)
    matched = match_size(feature_map, torch.zeros(2, 5, *other))
    assert matched.shape == (2, 3, *result)
    torch.testing.assert_close(matched, torch.nn.functional.adaptive_avg_pool2d(feature_map, result))
