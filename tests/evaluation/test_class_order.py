"""Matching of folders and labels to classes: numbers are numbers, guesses are shown, a wrong order gives a warning."""

import json

import numpy as np
import pytest

from in_process import here
from kd3.evaluation.labelled import doubts
from kd3.runtime.errors import KD3Error
from kd3.sources.class_matching import match_classes
from kd3.sources.record import Label
from named_colours import pictures, teacher

NUMBERS = [str(number) for number in range(11)]


def matched(names, classes):
    return match_classes([Label(name=name) for name in names], classes, where="data", label_origin="class folders")


@pytest.mark.parametrize(
    ("name", "first"),
    [("{}", 1), ("{:03d}", 0), ("{:02d}", 1), ("species-{}", 0), ("n{}_", 1), ("LABEL_{}", 0)],
)
def test_numbers_in_names_are_numbers(name, first):
    found = matched([name.format(number + first) for number in range(11)], NUMBERS)
    assert found.labels == {name.format(number + first): number for number in range(11)}


def test_words_are_numbers_too_and_may_be_some_of_them():
    assert matched(["Ten", "two", "six"], NUMBERS).labels == {"Ten": 10, "two": 2, "six": 6}


def test_numbers_are_places_among_named_classes():
    assert matched(["2", "0"], ["ash", "elm", "oak"]).labels == {"0": 0, "2": 2}


@pytest.mark.parametrize(
    ("names", "classes"),
    [(["0", "1", "2"], ["1", "2", "3"]), (["class_1", "class_2"], ["class_2", "class_3", "class_4"])],
)
def test_numbers_are_no_places_where_they_name_other_classes(names, classes):
    with pytest.raises(KD3Error, match=r"are classes of the model by name, .* and others that are not"):
        matched(names, classes)


def test_numbers_are_places_where_the_names_among_them_agree():
    assert matched(["0", "1", "2"], ["0", "ash", "2"]).labels == {"0": 0, "1": 1, "2": 2}


def test_names_are_matched_in_any_form_of_unicode():
    assert matched(["e\u0301table"], ["sol", "\u00e9table"]).labels == {"\u00e9table": 1}


@pytest.mark.parametrize(
    ("names", "classes", "message"),
    [
        (["100", "20", "3"], ["0", "1", "2"], "order by text is not that by number"),
        (["Test", "train"], ["0", "1"], "is divided into 'Test', 'train'"),
        (
            ["1", "01", "2"],
            ["0", "1", "2", "3"],
            "folders of 3 classes .* the model knows 4 classes, by number only",
        ),
        (["yew", "elm"], ["ash", "elm"], "no classes of the model: 'yew'"),
        (["yew"], ["0", "1"], "list them as 'classes: .*kd3 classes"),
    ],
)
def test_what_cannot_be_told_is_refused(names, classes, message):
    with pytest.raises(KD3Error, match=message):
        matched(names, classes)


def test_a_class_may_be_called_train():
    assert matched(["train", "test"], ["bus", "train", "test"]).labels == {"train": 1, "test": 2}


def test_numbers_and_names_together_are_matched_by_name():
    labels = [Label(0, "oak"), Label(1, "ash"), Label(2, "elm")]
    assert match_classes(labels, ["ash", "elm", "oak"], where="d", label_origin="labels").of(labels[0]) == 2
    assert match_classes(labels, ["0", "1", "2"], where="d", label_origin="labels").of(labels[0]) == 0


def test_numbers_and_other_names_are_matched_by_number_where_the_common_names_allow_it():
    labels = [Label(0, "airplane"), Label(1, "bird"), Label(2, "cat")]
    assert match_classes(labels, ["plane", "bird", "cat"], where="d", label_origin="labels").of(labels[0]) == 0
    with pytest.raises(KD3Error, match="no classes of the model: 'airplane'"):
        match_classes(labels, ["plane", "cat", "bird"], where="d", label_origin="labels")


def test_labels_beyond_the_classes_are_refused():
    with pytest.raises(KD3Error, match="has the labels 0 to 7, but the model knows 3 classes"):
        match_classes([Label(0), Label(7)], ["a", "b", "c"], where="d", label_origin="labels")


def test_evaluate_shows_a_line_where_names_match_and_a_table_where_not(tmp_path):
    named = teacher(tmp_path / "named", [0, 1, 2], "[ash, elm, oak]")
    bare = teacher(tmp_path / "bare", [0, 1, 2])
    data = pictures(tmp_path / "data", {"ash": 0, "elm": 1, "oak": 2})
    assert "classes: class folders, by name\nper class" in here("evaluate", named, "--data", data).stdout
    shown = here("evaluate", bare, "--data", data).stdout
    assert "in sorted order, as torchvision's ImageFolder" in shown
    assert "  elm  is class 1\n" in shown
    found = json.loads(here("evaluate", bare, "--data", data, "--json").stdout)["matching"]
    assert (found["labels"], found["identity"]) == ({"ash": 0, "elm": 1, "oak": 2}, False)


def test_a_permutation_is_warned_of_with_the_order_that_would_fit(tmp_path):
    turned = teacher(tmp_path / "turned", [2, 0, 1, 3], "[ash, elm, oak, yew]")
    data = pictures(tmp_path / "data", {"ash": 0, "elm": 1, "oak": 2, "yew": 3})
    done = here("evaluate", turned, "--data", data, "--json")
    (words,) = json.loads(done.stdout)["doubts"]
    assert "'ash' is called 'class 1, elm'" in words
    assert "['oak', 'ash', 'elm', 'yew'], in the order of its logits" in words
    assert f"warning: {words}" in done.stderr


def confused(matrix, classes):
    names = [str(number) for number in range(len(matrix))]
    return doubts(np.array(matrix), matched(names[: len(classes)], names))


def test_labels_from_one_and_a_model_from_zero_are_recognised():
    shift = np.roll(np.eye(6, dtype=int) * 5, -1, axis=1)
    shift[0] = 0
    (words,) = confused(shift.tolist(), range(6))
    assert "one counts from 0, the other from 1" in words


@pytest.mark.parametrize(
    "matrix",
    [
        [[9, 1], [2, 8]],
        [[9, 0, 0], [8, 1, 0], [7, 2, 0]],  # it says one class of everything
        [[1, 0], [0, 1]],
        [[0, 1, 0], [0, 0, 1], [1, 0, 0]],  # too few images to say
        [[4, 6], [6, 4]],
        [[0, 30, 0], [0, 0, 0], [0, 0, 0]],  # data of one class, which the model takes for another
    ],
)
def test_weak_models_and_few_images_are_no_permutation(matrix):
    assert not any("another order than the labels:" in words for words in confused(matrix, matrix))


def test_accuracy_far_below_chance_is_warned_of():
    (words,) = confused([[0, 20, 20], [20, 0, 20], [20, 20, 0]], range(3))
    assert "0.0% right is far below chance (33.3%)" in words
    assert confused([[12, 14, 14], [14, 12, 14], [14, 14, 12]], range(3)) == []


def test_few_images_below_chance_may_be_chance():
    assert confused([[0, 2, 0], [0, 0, 1], [1, 0, 0]], range(3)) == []
