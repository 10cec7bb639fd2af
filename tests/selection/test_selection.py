"""Dynamic selection: the worked example, the schedules, and starved classes."""

import itertools
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kd3 import selection as select
from kd3.selection import blend_logits, class_thresholds, most_probable, predict, select_everything, teacher_weight


def select_confident(logits, **options):
    """Select with equal logits of teacher and student."""
    return select.select_confident(predict(logits), teacher_logits=lambda: [logits], **options)


def logits_with(confidences, labels, classes):
    """Logits whose softmax has the confidence at the label and the rest shared equally."""
    rows = []
    for confidence, label in zip(confidences, labels, strict=True):
        row = [math.log((1 - confidence) / (classes - 1))] * classes
        row[label] = math.log(confidence)
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def test_thresholds_of_the_worked_example():
    assert class_thresholds(torch.tensor([8, 4, 2])).tolist() == pytest.approx([0.95, 0.95 / 3, 0.95 / 7], abs=1e-9)


def test_a_class_that_nobody_predicts_has_threshold_zero():
    assert class_thresholds(torch.tensor([5, 0]))[1] == 0
    assert class_thresholds(torch.tensor([0, 0])).tolist() == [0, 0]


def test_keeps_what_exceeds_the_threshold_of_its_class():
    confidences = [0.96, 0.94, *([0.96] * 6), 0.36, 0.6, 0.6, 0.6, 0.4, 0.4]
    labels = [0] * 8 + [1] * 4 + [2] * 2
    selection = select_confident(logits_with(confidences, labels, 3))
    assert selection.predicted_per_class.tolist() == [8, 4, 2]
    assert selection.index.tolist() == [0, *range(2, 14)]
    assert selection.kept_per_class.tolist() == [7, 4, 2]
    assert selection.warnings(["a", "b", "c"]) == []


def test_the_threshold_itself_is_not_enough():
    logits = torch.zeros(4, 2, dtype=torch.float64)  # confidence exactly 1/2, all predicted as class 0
    logits[3, 0] = 5
    assert select_confident(logits, threshold=0.5).index.tolist()[-1] == 3
    assert select_confident(logits, threshold=0.5).kept_per_class[0] < 4


@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(2, 6), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_equals_a_loop_over_the_images(seed, count, classes, threshold):
    logits = torch.randn(count, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 4
    probabilities = logits.softmax(1).tolist()
    predictions = [row.index(max(row)) for row in probabilities]
    counts = [predictions.count(k) for k in range(classes)]
    kept = []
    for i, label in enumerate(predictions):
        share = counts[label] / max(counts)
        if probabilities[i][label] > threshold * share / (2 - share):
            kept.append(i)
    selection = select_confident(logits, threshold=threshold, at_least=0)
    beyond = set(selection.index.tolist()) - set(kept)
    assert set(kept) <= set(selection.index.tolist())
    assert not beyond or selection.rescued_classes
    unsure = set(range(classes)) - {predictions[i] for i in kept} - set(selection.rescued_classes)
    assert not unsure  # every class has images that pass, or such as were rescued


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_a_higher_threshold_never_keeps_more(seed):
    logits = torch.randn(200, 4, generator=torch.Generator().manual_seed(seed)) * 3
    strict, loose = (select_confident(logits, threshold=t) for t in (0.95, 0.6))
    assume(not strict.rescued_classes)  # which hypothesis counts, so that this cannot always be so
    assert set(strict.index.tolist()) <= set(loose.index.tolist())


def test_the_order_of_the_images_does_not_matter():
    logits = torch.randn(100, 4, generator=torch.Generator().manual_seed(0)) * 3
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    shuffled = select_confident(logits[order]).index
    assert sorted(order[shuffled].tolist()) == select_confident(logits).index.tolist()


def test_a_starved_class_gets_its_most_probable_images_and_a_warning():
    logits = logits_with([0.99] * 300, [0] * 300, 3)
    logits[17, 2] = logits[17, 0] - 0.1  # the most probable for class 2, though predicted as 0
    selection = select_confident(logits)
    assert 17 in selection.index.tolist()
    assert selection.rescued_classes == (1, 2)
    assert "2 of 3 classes would keep no image (ship, truck)" in selection.warnings(["cat", "ship", "truck"])[0]


def test_a_class_that_the_student_lost_is_found_again_by_the_teacher():
    student = logits_with([0.99] * 300, [0] * 300, 3)
    teacher = logits_with([0.9] * 300, [1] * 300, 3)
    teacher[41] = torch.tensor([0.0, 0.0, 5.0])
    selection = select.select_confident(predict(student), teacher_logits=lambda: teacher.split(70))
    assert 41 in selection.index.tolist()
    assert selection.rescued_classes == (1, 2)


def test_the_teacher_is_asked_only_where_a_class_starves():
    logits = logits_with([0.99] * 30, [0, 1, 2] * 10, 3)

    def unasked():
        raise AssertionError("asked for nothing")

    assert len(select.select_confident(predict(logits), teacher_logits=unasked).index) == 30


@given(st.integers(0, 10_000), st.integers(1, 200), st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_the_most_probable_are_the_same_in_chunks_and_at_once(seed, count, wanted):
    logits = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = most_probable(logits.split(17), [3, 1], wanted)
    probabilities = logits.softmax(1)
    for row, label in zip(found, [3, 1], strict=True):
        assert row.tolist() == probabilities[:, label].argsort(descending=True)[:wanted].tolist()


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_the_size_of_a_chunk_changes_nothing(monkeypatch, chunk):
    logits = torch.randn(100, 4, generator=torch.Generator().manual_seed(0)) * 3
    whole = select_confident(logits)
    monkeypatch.setattr(select, "CHUNK", chunk)
    cut = select_confident(logits)
    assert torch.equal(whole.index, cut.index)
    assert torch.equal(whole.kept_per_class, cut.kept_per_class)


def test_too_few_confident_images_are_filled_up_to_a_batch():
    logits = torch.randn(100, 2, generator=torch.Generator().manual_seed(0)) * 0.01
    selection = select_confident(logits, threshold=1.0, at_least=32)
    assert len(selection.index) == 32
    assert selection.filled > 0
    confidence = logits.softmax(1).max(1).values
    left_out = torch.ones(100, dtype=torch.bool)
    left_out[selection.index] = False
    filled = [i for i in selection.index.tolist() if confidence[i] >= confidence[left_out].max()]
    assert len(filled) >= selection.filled
    assert "fill a batch" in " ".join(selection.warnings(["a", "b"]))


def test_a_pool_smaller_than_a_batch_is_kept_whole():
    assert len(select_confident(torch.randn(5, 3), threshold=1.0, at_least=128).index) == 5


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        select_confident(torch.tensor([[float("nan"), 0.0]]))
    with pytest.raises(ValueError, match="empty"):
        select_confident(torch.empty(0, 3))


def test_everything_is_everything():
    assert select_everything(4).index.tolist() == [0, 1, 2, 3]


def test_logits_are_mixed_not_probabilities():
    blend = blend_logits(torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 2.0]]), 0.25)
    assert blend.tolist() == [[1.0, 1.5]]


def test_the_papers_schedule_over_240_epochs_is_that_of_its_code():
    for epoch in range(1, 241):
        expected = 1 - math.exp(-5 * ((epoch + 1) / 160 - 1) ** 2) if epoch < 120 else 0.0
        assert teacher_weight((epoch - 1) / 240, "paper") == pytest.approx(expected, abs=1e-12), epoch
    assert teacher_weight(118 / 240, "paper") == pytest.approx(0.2684, abs=1e-4)


def test_the_smooth_schedule_follows_the_paper_and_never_jumps():
    points = [teacher_weight(t / 1000, "smooth") for t in range(1001)]
    assert points[:490] == pytest.approx([teacher_weight(t / 1000, "paper") for t in range(490)], abs=0.025)
    assert points[500] == pytest.approx(1 - math.exp(-5 / 16))
    assert max(abs(a - b) for a, b in itertools.pairwise(points)) < 0.01
    assert points == sorted(points, reverse=True)
    assert points[-1] == 0


def test_constant_schedules():
    assert teacher_weight(0.9, "teacher") == 1
    assert teacher_weight(0.9, "constant", constant=0.3) == 0.3


def test_a_class_that_is_predicted_but_never_surely_enough_is_rescued_by_a_hundredth_of_its_share():
    logits = torch.cat([logits_with([0.6] * 600, [0] * 600, 2), logits_with([0.99] * 200, [1] * 200, 2)])
    logits[17] = logits_with([0.7], [0], 2)[0]
    selection = select_confident(logits)
    assert selection.predicted_per_class.tolist() == [600, 200]
    assert selection.thresholds.tolist() == pytest.approx([0.95, 0.95 / 5])
    assert selection.rescued_classes == (0,)
    assert selection.rescued_each == 4  # 1% of 800 / 2
    assert selection.rescued[0, 0] == 17
    assert selection.rescued.shape == (1, 4)
    assert selection.kept_per_class.tolist() == [4, 200]
    assert selection.filled == 0


def test_one_image_is_enough_by_default_and_one_is_given_where_a_hundredth_is_less():
    sure = logits_with([0.99], [0], 2)
    assert select_confident(torch.cat([sure, sure])).filled == 0
    alone = select_confident(torch.cat([sure, logits_with([0.6] * 3, [0] * 3, 2)]))
    assert alone.rescued_each == 1
    assert alone.kept_per_class.sum() <= 2


def test_gaps_are_filled_exactly():
    logits = logits_with([0.99, 0.5, 0.9, 0.8], [0, 0, 0, 1], 2)
    for at_least, filled in ((2, 0), (3, 1), (4, 2)):
        selection = select_confident(logits, at_least=at_least)
        assert (len(selection.index), selection.filled) == (max(2, at_least), filled)
    assert select_confident(logits, at_least=3).index.tolist() == [0, 2, 3]


@pytest.mark.parametrize(("classes", "end"), [(8, "h)"), (9, "h, ...)")])
def test_eight_classes_are_named_and_more_are_hinted_at(classes, end):
    names = list("abcdefghi")[:classes]
    empty = select.Selection(torch.arange(3), rescued_classes=tuple(range(classes)), rescued_each=2)
    (words,) = empty.warnings(names)
    assert f"(a, b, c, d, e, f, g, {end}; each gets the 2 most probable" in words


def test_what_cannot_be_selected_from_is_named():
    with pytest.raises(ValueError, match=r"^cannot select from an empty pool$"):
        select_confident(torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"^cannot select: the scores of some images are not finite$"):
        select_confident(torch.full((2, 3), float("nan")))


def test_a_random_part_is_sorted_and_the_seeds():
    one, again, other = (select.select_random(100, 30, seed=seed).index.tolist() for seed in (1, 1, 2))
    assert one == again == sorted(set(one))
    assert one != other
    assert len(one) == 30
    assert set(one) < set(range(100))
    assert one != list(range(30))
    assert select.select_random(5, 9, seed=0).index.tolist() == [0, 1, 2, 3, 4]


def test_labels_are_small_integers():
    assert predict(torch.eye(3)).label.dtype == torch.int32


def test_the_schedules_defaults():
    assert teacher_weight(0.2) == teacher_weight(0.2, "smooth")
    assert teacher_weight(0.2, "constant") == 0.5
