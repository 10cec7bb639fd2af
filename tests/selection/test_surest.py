"""The images that the teacher is surest of."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kd3.selection.rules import select_surest, self_cross_entropy


@given(st.integers(1, 60), st.integers(2, 6), st.integers(1, 60), st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_chunks_change_nothing_and_the_rest_is_less_sure(images, classes, wanted, seed):
    logits = 3 * torch.randn(images, classes, generator=torch.Generator().manual_seed(seed))
    whole, confidence = select_surest([logits], wanted)
    parts, _ = select_surest(logits.split(7), wanted)
    assert whole.index.tolist() == parts.index.tolist()
    assert len(whole.index) == min(wanted, images)
    entropy = torch.nn.functional.cross_entropy(logits.double(), logits.argmax(1), reduction="none")
    torch.testing.assert_close(self_cross_entropy(logits), entropy, rtol=1e-6, atol=1e-9)
    kept = torch.zeros(images, dtype=torch.bool)
    kept[whole.index] = True
    if not kept.all():
        assert entropy[kept].max() <= entropy[~kept].min() + 1e-12
    assert confidence == pytest.approx(float(logits.double().softmax(1).amax(1)[kept].mean()), rel=1e-9)
    assert int(whole.kept_per_class.sum()) == len(whole.index)


def test_ties_go_to_the_earlier_image():
    assert select_surest([torch.zeros(10, 3)], 4)[0].index.tolist() == [0, 1, 2, 3]


def test_order_is_kept_where_probabilities_round_to_one():
    logits = torch.tensor([[40.0, 0.0], [60.0, 0.0], [50.0, 0.0]])
    assert select_surest([logits], 1)[0].index.tolist() == [1]
    assert select_surest([logits], 2)[0].index.tolist() == [1, 2]


def test_what_cannot_be_selected_from_is_refused():
    with pytest.raises(ValueError, match="empty"):
        select_surest([], 3)
    with pytest.raises(ValueError, match="not finite"):
        select_surest([torch.full((2, 3), float("nan"))], 1)


def test_counts_know_classes_that_nobody_says():
    logits = torch.tensor([[3.0, 0, 0], [0, 1, 0], [2, 0, 0], [0, 0.1, 0]])
    selection, _ = select_surest([logits], 2)
    assert selection.index.tolist() == [0, 2]
    assert selection.predicted_per_class.tolist() == [2, 2, 0]
    assert selection.kept_per_class.tolist() == [2, 0, 0]


def test_many_ties_go_to_the_earlier_images_too():
    assert select_surest([torch.zeros(5000, 3)], 700)[0].index.tolist() == list(range(700))


def test_what_is_refused_is_named():
    with pytest.raises(ValueError, match=r"^cannot select from an empty pool$"):
        select_surest([], 3)
    with pytest.raises(ValueError, match=r"^cannot select: the teacher's logits of some images are not finite$"):
        select_surest([torch.full((2, 3), float("nan"))], 1)
