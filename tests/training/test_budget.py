"""Length of a run: in images, in epochs of the pool, in passes over selected images."""

import pytest

from kd3.config.training import TrainSettings
from kd3.training.budget import Budget, Progress


def rounds(settings, kept, *, images=100, passes=1.0, processes=1):
    """Return (steps, images) of each round of a run that keeps so many images in each, and the progress before it."""
    budget, at, made = Budget(TrainSettings(**settings), images, processes), Progress(), []
    while not budget.is_used_up(at):
        before = budget.progress(at)
        budget.open_round(at, kept(at.round), passes)
        at.round += 1
        made.append((at.round_end - at.round_start, at.round_images, before))
        at.step = at.round_end
    assert budget.progress(at) == pytest.approx(1)
    return made


def test_an_epoch_of_the_pool_is_as_long_whatever_is_selected():
    made = rounds({"epochs": 4, "batch_size": 10}, lambda number: 50)
    assert sum(images for _, images, _ in made) == 400
    assert len(made) == 8


def test_an_epoch_of_the_selection_is_a_pass_over_it():
    kept = [100, 60, 40, 40]
    made = rounds({"epochs": 4, "batch_size": 10, "epoch_of": "selected"}, lambda number: kept[number])
    assert [images for _, images, _ in made] == kept
    assert [progress for _, _, progress in made] == [0, 0.25, 0.5, 0.75]


def test_240_epochs_begin_where_the_papers_begin():
    made = rounds({"epochs": 240, "batch_size": 10, "epoch_of": "selected"}, lambda number: 30 + number % 7)
    assert [progress for _, _, progress in made] == [epoch / 240 for epoch in range(240)]


@pytest.mark.parametrize(("passes", "lengths"), [(2, [80, 80, 40]), (0.5, [20] * 10), (0.3, [12] * 16 + [8])])
def test_rounds_of_several_passes_or_of_parts_of_one_end_with_the_budget(passes, lengths):
    settings = {"epochs": 5, "batch_size": 4, "epoch_of": "selected"}
    assert [images for _, images, _ in rounds(settings, lambda number: 40, passes=passes)] == lengths


@pytest.mark.parametrize(
    ("kept", "processes", "expected"),
    [
        (40, 1, (4, 40)),
        (47, 1, (5, 47)),
        (41, 1, (4, 40)),  # a batch of one image is none
        (47, 2, (5, 46)),  # processes have parts of one size
        (43, 2, (4, 40)),
        (7, 1, (1, 7)),
        (1, 1, (1, 10)),
    ],
)
def test_a_last_batch_is_kept_where_it_can_be_trained_on(kept, processes, expected):
    settings = {"epochs": 1, "batch_size": 10, "epoch_of": "selected"}
    assert rounds(settings, lambda number: kept, processes=processes)[0][:2] == expected


def test_a_budget_in_images_has_whole_batches_whatever_an_epoch_is():
    made = rounds({"images": 100, "batch_size": 10, "epoch_of": "selected"}, lambda number: 34)
    assert [images for _, images, _ in made] == [30, 30, 30, 10]


def test_a_compiled_teacher_takes_batches_of_one_size():
    with pytest.raises(ValueError, match="give epoch_of pool, or do not compile"):
        TrainSettings(compile_teacher=True, epoch_of="selected", epochs=2)
    assert TrainSettings(compile_teacher=True, epoch_of="selected", images=128).compile_teacher


@pytest.mark.parametrize(
    ("given", "inherited", "batch"),
    [
        ({}, False, 64),
        ({}, True, 128),
        ({"images": 100}, True, 64),
        ({"images": 12_799}, True, 64),
        ({"images": 12_800}, True, 128),
        ({"epochs": 0.5}, True, 128),
        ({"batch_size": 32}, True, 32),
        ({"batch_size": 96}, False, 96),
    ],
)
def test_a_student_that_inherits_takes_larger_batches_unless_told_or_short_of_images(given, inherited, batch):
    assert TrainSettings(**given).settled(inherited=inherited).batch == batch


def test_a_short_run_of_inherited_weights_takes_larger_steps():
    rates = [TrainSettings(images=images).settled(inherited=True).matrix_peak for images in (6_000, 12_800, 60_000)]
    assert rates == [0.1, 0.025, 0.025]
