"""The temperature-softened divergence against a slow loop and its laws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd3.losses import soft_target_divergence


def naive_divergence(student, teacher, temperature):
    def softmax(row):
        exponentials = [math.exp(v / temperature) for v in row]
        return [e / sum(exponentials) for e in exponentials]

    total = 0.0
    for s_row, t_row in zip(student.tolist(), teacher.tolist(), strict=True):
        total += sum(t * math.log(t / s) for s, t in zip(softmax(s_row), softmax(t_row), strict=True))
    return temperature**2 * total / len(student)


def logits(seed, batch=4, classes=5):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(batch, classes, generator=generator, dtype=torch.float64) * 3 for _ in range(2))


@given(st.integers(0, 10_000), st.floats(0.5, 8))
@settings(max_examples=25, deadline=None)
def test_equals_a_loop(seed, temperature):
    student, teacher = logits(seed)
    assert float(soft_target_divergence(student, teacher, temperature=temperature)) == pytest.approx(
        naive_divergence(student, teacher, temperature), abs=1e-9
    )


def test_is_zero_where_the_logits_differ_by_a_constant_only():
    student, _ = logits(0)
    assert float(soft_target_divergence(student, student + 7, temperature=4)) == pytest.approx(0, abs=1e-12)


def test_no_gradient_reaches_the_teacher():
    student, teacher = (x.requires_grad_() for x in logits(1))
    soft_target_divergence(student, teacher, temperature=4).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_gradient_is_right():
    student, teacher = logits(2)
    assert torch.autograd.gradcheck(
        lambda s: soft_target_divergence(s, teacher, temperature=4), student.requires_grad_()
    )
