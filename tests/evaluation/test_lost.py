"""Teacher and student side by side, counted by hand; and the images that only the teacher gets right."""

import numpy as np
import pytest
import torch
from PIL import Image

from kd3.config.records import Preparation, Signature
from kd3.evaluation.labelled import LabelledImages
from kd3.evaluation.lost import Answers, class_lines, total_in_words, worst_in_words
from kd3.models.student import own_head
from named_colours import SIDE, network

NAMES = ["ant", "bee", "cow"]


def logits(says, sure=4.0):
    """Logits that say these classes."""
    return torch.nn.functional.one_hot(torch.tensor(says), 3).double() * sure


def compared(labels, teacher, student, **more):
    answers = Answers(object())
    for start in range(0, len(labels), 5):  # in batches
        part = slice(start, start + 5)
        answers.add(logits(student[part]), torch.tensor(labels[part]), logits(teacher[part]))
    return answers.lost(NAMES, **more)


def test_each_class_is_counted_by_itself_and_classes_without_images_are_left_out():
    labels = [0, 0, 0, 0, 1, 1, 1]
    teacher = [0, 0, 0, 1, 1, 1, 0]
    student = [0, 1, 2, 0, 1, 1, 2]
    lost = compared(labels, teacher, student)
    assert [one.name for one in lost.classes] == ["ant", "bee"]
    ant, bee = lost.classes
    assert (ant.images, ant.only_teacher, ant.only_student) == (4, 2, 1)
    assert (ant.teacher.value, ant.student.value, ant.difference.value) == (75, 50, -25)
    assert (bee.only_teacher, bee.only_student, bee.difference.value) == (0, 0, 0)
    total = lost.total
    assert (total.images, total.only_teacher, total.only_student) == (7, 2, 1)
    assert total.difference.value == pytest.approx(-100 / 7)
    assert [one.name for one in lost.worst(5)] == ["ant"]


def test_words_name_a_loss_only_where_it_is_beyond_chance():
    few = compared([0, 1, 2], [0, 1, 2], [0, 1, 1])
    assert "neither better nor worse" in total_in_words(few)
    assert worst_in_words(few) == "Of no class alone is a loss beyond chance."
    many = compared([0, 1, 2] * 40, [0, 1, 2] * 40, [0, 1, 1] * 40)
    assert "the student loses 33.3 points" in total_in_words(many)
    assert worst_in_words(many) == "Lost most: cow -100.0 points."
    same = compared([0, 1, 2], [0, 1, 2], [0, 1, 2])
    assert worst_in_words(same) == ""


def test_lines_stand_below_one_another():
    lines = class_lines(compared([0, 1, 2] * 40, [0, 1, 2] * 40, [0, 1, 1] * 40))
    table = [line for line in lines if line.startswith("  ")]
    assert len({len(line) for line in table}) == 1


def test_examples_are_the_very_images_also_after_files_that_are_none(tmp_path):
    draw = np.random.default_rng(0)
    for name in NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_text("<html>")
        for number in range(1, 5):
            pixels = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    data = LabelledImages(
        str(tmp_path), preparation=Preparation(8), class_names=NAMES, workers=0
    )  # fmt: skip
    images, labels = (torch.cat(parts) for parts in zip(*data.batches(5), strict=True))
    answers = Answers(object())
    wrong = [(int(label) + 1) % 3 if place in (2, 6) else int(label) for place, label in enumerate(labels)]
    answers.add(logits(wrong), labels, logits(labels.tolist()))
    lost = answers.lost(NAMES, examples=3)
    places = [example.place for found in lost.examples.values() for example in found]
    assert places == [2, 6]
    assert lost.examples["ant"][0].student_class == "bee"
    for place, pixels in zip(places, data.examples(places), strict=True):
        assert np.array_equal(pixels, images[place].numpy())
    assert data.usable == 12


def test_the_classes_that_lost_most_come_first():
    labels = [0] * 50 + [1] * 50 + [2] * 50
    student = [0] * 30 + [1] * 20 + [1] * 10 + [2] * 40 + [2] * 50
    lost = compared(labels, labels, student)
    assert [(one.name, one.difference.value) for one in lost.worst(9)] == [("bee", -80), ("ant", -40)]
    assert [one.name for one in lost.worst(1)] == ["bee"]
    assert worst_in_words(lost) == "Lost most: bee -80.0, ant -40.0 points."


def test_a_gain_is_called_one():
    won = compared([0, 1, 2] * 40, [0, 1, 1] * 40, [0, 1, 2] * 40)
    assert "the student gains 33.3 points" in total_in_words(won)


def test_the_most_surprising_examples_come_first():
    answers = Answers(object())
    for sure in (1.0, 9.0, 4.0):
        answers.add(logits([1], sure), torch.tensor([0]), logits([0], sure))
    assert [example.place for example in answers.lost(NAMES, examples=2).examples["ant"]] == [1, 2]


def cascaded(thresholds, temperature=1.0):
    plain = Signature(mean=[0.0] * 3, std=[1.0] * 3, input_size=SIDE, classes=NAMES)
    made = own_head(network([0, 1, 2]), plain, name="small")
    made.cascade = {"temperature": temperature, "thresholds": [{"agreement": 90.0, "margin": m} for m in thresholds]}
    return made


@pytest.mark.parametrize("of_this_teacher", [True, False])
def test_a_cascade_takes_the_teachers_answer_where_the_student_is_not_sure(of_this_teacher):
    answers = Answers(cascaded([2.0, None, 9.0]), of_this_teacher=of_this_teacher)
    # Sure and right, sure and wrong, not sure and wrong; the teacher is right, wrong, right.
    for own, sure, theirs in ((0, 5.0, 0), (1, 5.0, 2), (2, 1.0, 0)):
        answers.add(logits([own], sure), torch.tensor([0]), logits([theirs]))
    found = [(one.escalated, one.agreement.value, one.accuracy.value) for one in answers.lost(NAMES).cascade]
    expected = [(100 / 3, 200 / 3, 200 / 3), (100, 100, 200 / 3)] if of_this_teacher else []
    assert found == [pytest.approx(row) for row in expected]


def test_the_students_temperature_scales_its_confidence_and_not_the_teachers():
    answers = Answers(cascaded([], temperature=4.0))
    answers.add(logits([0, 1]), torch.tensor([0, 0]), logits([0, 0]))
    errors = answers.lost(NAMES).calibration_error
    hot, cold = (float(torch.tensor([4.0 / t, 0, 0], dtype=torch.float64).softmax(0)[0]) for t in (1, 4))
    assert errors["student"] == pytest.approx(100 * abs(cold - 0.5))
    assert errors["student as trained"] == pytest.approx(100 * abs(hot - 0.5))
    assert errors["teacher"] == pytest.approx(100 * (1 - hot))
