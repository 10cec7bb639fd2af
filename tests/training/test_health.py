"""Warnings of a training, each given once, also after a resume."""

import pytest

from kd3.runtime.run_folder import read_metrics
from kd3.training.history import Health, History

CLASSES = ["cat", "dog", "sh\x1bip"]


def health(budget=1000):
    return Health(CLASSES, budget)


def look(agreement, images=500, **more):
    return {"images": images, "agreement": agreement, **more}


def chosen(kept_per_class, of=1000, **more):
    return {"kept": sum(kept_per_class), "of": of, "kept_per_class": kept_per_class, **more}


def test_classes_without_images_are_named_and_their_names_are_harmless():
    assert health().notes("selection", chosen([100, 0, 0])) == ["2 of 3 classes receive no image: dog, sh?ip"]
    assert health().notes("selection", chosen([100, 0, 1], rescued_classes=[1])) == []
    assert health().notes("selection", {"kept": 900, "of": 1000, "kept_per_class": None}) == []


def test_a_selection_that_keeps_hardly_anything():
    (words,) = health().notes("selection", chosen([3, 3, 3]))
    assert "keeps 9 of 1,000 images" in words
    assert health().notes("selection", chosen([4, 3, 3])) == []


@pytest.mark.parametrize(("agreement", "images", "warned"), [(33.0, 100, True), (33.0, 99, False), (34.0, 900, False)])
def test_agreement_of_chance_after_a_tenth_of_the_budget(agreement, images, warned):
    notes = health().notes("evaluation", look(agreement, images))
    assert bool(notes) == warned
    assert not warned or "no more than chance (33.3%)" in notes[0]


def test_agreement_that_falls_at_two_looks_in_a_row():
    follow = health()
    said = [follow.notes("evaluation", look(value)) for value in (60, 70, 64, 66, 64, 63, 62)]
    assert [bool(notes) for notes in said] == [False, False, False, False, False, True, False]
    assert "fallen from 70.0% to 63.0%" in said[5][0]


def test_a_student_of_one_word():
    assert health().notes("evaluation", look(60, commonest=0.97, teachers_share_of_it=0.9)) == []
    (words,) = health().notes("evaluation", look(60, commonest=0.97, teachers_share_of_it=0.5))
    assert "predicts one class for 97% of the held-out images (teacher: 50%)" in words


def test_each_thing_is_said_once_in_a_run_and_not_again_after_a_resume(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    bad = {"step": 1, "images": 500, "seconds": 1.0, "agreement": 10.0}
    first = History(path, health(), size=0, listeners=[])
    first.add("evaluation", **bad)
    first.add("evaluation", **bad)
    kept = first.size
    first.warn("lost with what came after the checkpoint", step=2)
    again = History(path, health(), size=kept, listeners=[])
    again.add("evaluation", **bad)
    again.warn("lost with what came after the checkpoint", before="round 2: ", step=2, images=5)
    warned = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in warned] == ["warning"] * 3
    assert sum("no more than chance" in line for line in warned) == 1
    assert warned[-1] == "warning: round 2: lost with what came after the checkpoint"
    events = list(read_metrics(path, "warning"))
    assert [event["words"][:4] for event in events] == ["the ", "lost"]
    assert events[1]["images"] == 5


def test_a_resumed_run_remembers_how_good_it_was(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = History(path, health(), size=0, listeners=[])
    for agreement in (70.0, 60.0):
        first.add("evaluation", step=1, images=500, seconds=1.0, agreement=agreement)
    again = History(path, health(), size=first.size, listeners=[])
    again.add("evaluation", step=2, images=600, seconds=1.0, agreement=60.0)
    (event,) = read_metrics(path, "warning")
    assert "fallen from 70.0%" in event["words"]
