"""Signs of accuracy without labels: MaNo's score, and the error of a line through the other sets."""

import pytest
import torch
from benchmarks.deployment_signs import left_out, mano


def test_mano_is_the_norm_of_softmax_where_a_model_is_sure():
    sure = torch.tensor([[40.0, 0.0], [0.0, 40.0]])
    assert mano(sure) == pytest.approx(0.5**0.25)  # half of the shares are 1, the others 0
    assert mano(sure) > mano(sure / 3.5)


def test_mano_of_an_unsure_model_is_that_of_a_parabola():
    logits = torch.tensor([[1.0, 0.0]])
    shares = torch.tensor([2.5, 1.0]) / 3.5
    assert mano(logits) == pytest.approx(float(shares.pow(4).mean().pow(0.25)))


def test_a_line_foretells_what_lies_on_it_and_misses_what_does_not():
    assert left_out([1.0, 2.0, 4.0], [10.0, 20.0, 40.0]) == pytest.approx([0, 0, 0], abs=1e-9)
    assert left_out([1.0, 2.0, 3.0], [10.0, 20.0, 40.0])[2] == pytest.approx(10)
