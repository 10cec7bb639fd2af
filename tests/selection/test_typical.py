"""Selection by typicality, and without the surest images."""

import pytest
import torch

from kd3.selection import Predictions, Selection, select_everything
from kd3.selection.rules import select_typical, without_surest


def predictions(labels, classes=3):
    return Predictions(torch.ones(len(labels)), torch.tensor(labels, dtype=torch.int32), classes)


def test_of_each_class_the_nearest_share_is_kept():
    labels = [0, 0, 0, 0, 1, 1, 1, 2]
    distances = torch.tensor([4.0, 3, 2, 1, 9, 7, 8, 100])
    chosen = select_typical(distances, predictions(labels), share=0.5)
    assert chosen.index.tolist() == [2, 3, 5, 6, 7]
    assert chosen.predicted_per_class.tolist() == [4, 3, 1]
    assert chosen.kept_per_class.tolist() == [2, 2, 1]


def test_everything_is_a_share_of_one_and_ties_go_to_the_earlier():
    assert select_typical(torch.zeros(4), predictions([0] * 4), share=1).index.tolist() == [0, 1, 2, 3]
    assert select_typical(torch.zeros(4), predictions([0] * 4), share=0.5).index.tolist() == [0, 1]


def test_a_batch_is_filled_by_the_nearest_others():
    distances = torch.tensor([5.0, 1, 2, 9])
    chosen = select_typical(distances, predictions([0, 0, 0, 1]), share=0.01, at_least=3)
    assert chosen.index.tolist() == [1, 2, 3]
    assert chosen.filled == 1


@pytest.mark.parametrize("distances", [torch.empty(0), torch.tensor([1.0, float("nan")])])
def test_what_cannot_be_compared_is_refused(distances):
    with pytest.raises(ValueError, match="cannot select"):
        select_typical(distances, predictions([0] * len(distances)), share=0.5)


def test_the_surest_share_of_a_selection_is_left_out():
    entropy = torch.tensor([0.5, 0.1, 0.0, 0.7, 1e-9, 0.2])
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    selection = Selection(index=torch.tensor([0, 2, 3, 4]), kept_per_class=torch.tensor([2, 1, 1]))
    left = without_surest(selection, entropy, labels, share=0.5)
    assert left.index.tolist() == [0, 3]
    assert left.kept_per_class.tolist() == [2, 0, 0]
    assert without_surest(selection, entropy, labels, share=0.25).index.tolist() == [0, 3, 4]
    assert without_surest(selection, entropy, labels, share=0).index.tolist() == [0, 2, 3, 4]


def test_a_batch_and_what_starving_classes_were_given_stay():
    entropy, labels = torch.arange(10.0), torch.zeros(10, dtype=torch.int64)
    assert len(without_surest(select_everything(10), entropy, labels, share=0.9, at_least=4).index) == 4
    selection = Selection(index=torch.arange(10), rescued=torch.tensor([[0, 2]]))
    assert without_surest(selection, entropy, labels, share=0.5).index.tolist() == [0, 2, 7, 8, 9]
