"""Accuracy, calibration and agreement against slow loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd3.evaluation.accuracy import Tally
from kd3.runtime.errors import KD3Error


def naive(logits, labels, teacher):
    probabilities = logits.softmax(1).tolist()
    count, classes = len(labels), len(probabilities[0])
    right = top5 = agreed = 0
    bins = [[0, 0.0, 0] for _ in range(15)]
    for row, label, teacher_row in zip(probabilities, labels.tolist(), teacher.tolist(), strict=True):
        order = sorted(range(classes), key=lambda k: -row[k])
        right += order[0] == label
        top5 += label in order[:5]
        agreed += order[0] == teacher_row.index(max(teacher_row))
        place = next(b for b in range(15) if row[order[0]] <= (b + 1) / 15 + 1e-15)
        bins[place][0] += 1
        bins[place][1] += row[order[0]]
        bins[place][2] += order[0] == label
    error = sum(n / count * abs(hits / n - sure / n) for n, sure, hits in bins if n)
    return 100 * right / count, 100 * top5 / count, 100 * agreed / count, 100 * error


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(2, 40))
@settings(max_examples=30, deadline=None)
def test_equals_loops_in_any_batches(seed, count, classes):
    generator = torch.Generator().manual_seed(seed)
    logits, teacher = (torch.randn(count, classes, generator=generator, dtype=torch.float64) * 2 for _ in "ab")
    labels = torch.randint(0, classes, (count,), generator=generator)
    tally = Tally(classes)
    for start in range(0, count, 7):
        part = slice(start, start + 7)
        tally.add(logits[part], labels[part], teacher[part])
    figures = (tally.top1_percent, tally.top5_percent, tally.agreement_percent, tally.calibration_error_percent)
    assert figures == pytest.approx(naive(logits, labels, teacher), abs=1e-9)


def test_per_class_accuracy_tells_classes_without_images():
    tally = Tally(3)
    tally.add(torch.eye(3)[[0, 0, 1]], torch.tensor([0, 1, 1]))
    assert tally.per_class_percent() == [100.0, 50.0, None]
    assert tally.agreement_percent is None


def test_a_model_that_is_always_sure_and_always_right_is_calibrated():
    tally = Tally(2)
    tally.add(torch.tensor([[100.0, 0.0], [0.0, 100.0]]), torch.tensor([0, 1]))
    assert tally.calibration_error_percent == pytest.approx(0, abs=1e-9)


def test_the_surest_images_share_a_bin_with_those_hardly_less_sure():
    """Bins hold their upper end: certainty, 1, is in the last bin, and not in one of its own."""
    tally = Tally(2)
    tally.add(torch.tensor([[1000.0, 0.0], [math.log(0.95 / 0.05), 0.0]]), torch.tensor([1, 0]))
    assert tally.calibration_error_percent == pytest.approx(100 * abs(1 - 1.95) / 2, abs=1e-6)


def test_a_temperature_changes_how_sure_it_is_and_no_answer():
    tally = Tally(2, temperature=4.0)
    tally.add(torch.tensor([[4.0, 0.0], [0.0, 8.0]]), torch.tensor([1, 1]))
    sure, surer = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2))
    assert tally.top1_percent == 50
    assert tally.calibration_error_percent == pytest.approx(50 * (sure + 1 - surer))


def test_a_model_of_many_classes_that_is_sure_of_none_is_in_the_first_bin():
    tally = Tally(40)
    tally.add(torch.zeros(2, 40), torch.tensor([0, 1]))
    (only,) = tally.reliability.bins()
    assert (only.images, only.confidence, only.right) == (2, pytest.approx(1 / 40), 0.5)
    assert tally.reliability.count.tolist() == [2.0, *[0.0] * 14]


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("whose", ["model", "teacher"])
def test_logits_that_are_not_finite_are_no_answer(odd, whose):
    sound, labels = torch.eye(4), torch.arange(4)
    broken = sound.clone()
    broken[0, 2] = odd
    tally = Tally(4)
    with pytest.raises(KD3Error, match=f"the {whose}'s logits are not finite on 1 of 4 images"):
        tally.add(*((broken, labels) if whose == "model" else (sound, labels, broken)))
