"""NT-Xent against a slow loop and its laws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from kd3.losses import nt_xent


def naive_nt_xent(u, v, temperature):
    vectors = [row.tolist() for row in torch.cat([u, v])]
    count = len(vectors)

    def similarity(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True)) / temperature

    total = 0.0
    for i in range(count):
        positive = (i + count // 2) % count
        below = sum(math.exp(similarity(vectors[i], vectors[j])) for j in range(count) if j != i)
        total += math.log(below) - similarity(vectors[i], vectors[positive])
    return total / count


def unit_vectors(seed, batch, size=5):
    generator = torch.Generator().manual_seed(seed)
    return (F.normalize(torch.randn(batch, size, generator=generator, dtype=torch.float64), dim=1) for _ in "uv")


@given(st.integers(0, 10_000), st.integers(1, 6), st.floats(0.1, 2.0))
@settings(max_examples=25, deadline=None)
def test_equals_a_loop_over_every_pair(seed, batch, temperature):
    u, v = unit_vectors(seed, batch)
    assert float(nt_xent(u, v, temperature=temperature)) == pytest.approx(naive_nt_xent(u, v, temperature), abs=1e-9)


def test_is_the_same_for_any_order_of_the_images_and_views():
    u, v = unit_vectors(0, 6)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    loss = nt_xent(u, v, temperature=0.3)
    assert float(nt_xent(u[order], v[order], temperature=0.3)) == pytest.approx(float(loss), abs=1e-12)
    assert float(nt_xent(v, u, temperature=0.3)) == pytest.approx(float(loss), abs=1e-12)


def test_collapsed_embeddings_cost_the_log_of_the_others():
    same = F.normalize(torch.ones(4, 3, dtype=torch.float64), dim=1)
    assert float(nt_xent(same, same, temperature=0.3)) == pytest.approx(math.log(7))


def test_gradient_is_right():
    u, v = unit_vectors(2, 3)
    assert torch.autograd.gradcheck(
        lambda a, b: nt_xent(a, b, temperature=0.3), (u.requires_grad_(), v.requires_grad_())
    )


def test_is_computed_in_float32_under_autocast():
    u, v = (x.float() for x in unit_vectors(3, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = nt_xent(u, v, temperature=0.3)
    assert float(inside) == float(nt_xent(u, v, temperature=0.3))


def test_refuses_views_of_different_sizes():
    with pytest.raises(ValueError, match="one shape"):
        nt_xent(torch.zeros(2, 3), torch.zeros(3, 3), temperature=0.3)
