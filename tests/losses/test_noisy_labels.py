"""Learning from labels that are sometimes wrong."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd3.losses import adapted_cross_entropy, transition_matrix


@given(st.integers(2, 9), st.floats(0.01, 0.99), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_rows_are_distributions_with_the_accuracy_on_the_diagonal(classes, accuracy, seed):
    mistakes = torch.randn(classes, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    matrix = transition_matrix(mistakes, accuracy)
    torch.testing.assert_close(matrix.sum(1), torch.ones(classes, dtype=torch.float64))
    torch.testing.assert_close(matrix.diagonal(), torch.full((classes,), accuracy, dtype=torch.float64))
    assert (matrix >= 0).all()


def test_zeros_spread_mistakes_evenly():
    expected = [[0.7, 0.15, 0.15], [0.15, 0.7, 0.15], [0.15, 0.15, 0.7]]
    torch.testing.assert_close(transition_matrix(torch.zeros(3, 3), 0.7), torch.tensor(expected))


def test_equals_a_loop_over_images():
    draw = torch.Generator().manual_seed(0)
    logits, mistakes = torch.randn(6, 4, generator=draw).double(), torch.randn(4, 4, generator=draw).double()
    labels = torch.tensor([0, 1, 2, 3, 0, 2])
    matrix = transition_matrix(mistakes, 0.9)
    total = 0.0
    for i, label in enumerate(labels.tolist()):
        probabilities = [math.exp(v) for v in logits[i].tolist()]
        share = [p / sum(probabilities) for p in probabilities]
        total -= math.log(sum(share[k] * float(matrix[k, label]) for k in range(4)))
    assert float(adapted_cross_entropy(logits, labels, matrix)) == pytest.approx(total / 6, rel=1e-9)


def test_with_a_perfect_teacher_it_is_the_ordinary_cross_entropy():
    logits, labels = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0])
    adapted = adapted_cross_entropy(logits, labels, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(adapted, torch.nn.functional.cross_entropy(logits, labels))


def test_the_gradient_reaches_student_and_matrix():
    logits, mistakes = torch.randn(5, 3, requires_grad=True), torch.zeros(3, 3, requires_grad=True)
    adapted_cross_entropy(logits, torch.tensor([0, 1, 2, 1, 0]), transition_matrix(mistakes, 0.9)).backward()
    assert logits.grad.abs().sum() > 0
    assert mistakes.grad.abs().sum() > 0


def test_an_accuracy_of_another_type_does_not_widen_the_matrix():
    matrix = transition_matrix(torch.zeros(3, 3), torch.tensor(0.7, dtype=torch.float64))
    assert matrix.dtype == torch.float32
    assert matrix.tolist()[0] == pytest.approx([0.7, 0.15, 0.15])
