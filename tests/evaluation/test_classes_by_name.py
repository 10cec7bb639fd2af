"""Two models with the same classes in another order are compared by name."""

import json
import re

import pytest

import kd3
from in_process import here
from kd3.config.records import places
from kd3.runtime.errors import KD3Error
from named_colours import network, pictures, teacher

FRUIT = "[apple, pear, plum, fig]"
TURNED = "[fig, apple, plum, pear]"


def test_agreement_is_that_of_names_whatever_their_order(tmp_path):
    data = pictures(tmp_path / "data", {"apple": 0, "pear": 1, "plum": 2, "fig": 3})
    one = teacher(tmp_path / "one", [0, 1, 2, 3], FRUIT)
    other = teacher(tmp_path / "other", [3, 0, 2, 1], TURNED)
    done = here("evaluate", one, "--data", data, "--teacher", other, "--json")
    figures = json.loads(done.stdout)
    assert (figures["top1"], figures["teacher_top1"], figures["agreement"]) == (100, 100, 100)


def test_both_accuracies_and_their_difference_are_said(tmp_path):
    data = pictures(tmp_path / "data", {"apple": 0, "pear": 1, "plum": 2, "fig": 3})
    worse = teacher(tmp_path / "worse", [0, 1, 3, 2], FRUIT)
    right = teacher(tmp_path / "right", [0, 1, 2, 3], FRUIT)
    done = here("evaluate", worse, "--data", data, "--teacher", right)
    rows = dict(re.findall(r"^  (\S.*?)  +([-+.\d]+(?:%| points))", done.stdout, re.MULTILINE))
    assert rows["top-1"] == "50.00%"
    assert rows["teacher's top-1"] == "100.00%"
    assert rows["difference"] == "-50.00 points"
    assert json.loads(here("evaluate", worse, "--data", data, "--teacher", right, "--json").stdout)["difference"] == -50
    assert "difference" not in here("evaluate", worse, "--data", data).stdout


def test_a_teacher_of_other_names_is_refused(tmp_path):
    data = pictures(tmp_path / "data", {"apple": 0, "pear": 1})
    one = teacher(tmp_path / "one", [0, 1, 2, 3], FRUIT)
    other = teacher(tmp_path / "other", [0, 1, 2, 3], "[apple, pear, plum, grape]")
    done = here("evaluate", one, "--data", data, "--teacher", other)
    assert (done.returncode, done.stdout) == (2, "")
    assert "'fig' of the first is not in the second" in done.stderr


@pytest.mark.parametrize(
    ("wanted", "given", "order"),
    [
        (["a", "b", "c"], ["c", "a", "b"], [1, 2, 0]),
        (["a", "b"], ["0", "1"], [0, 1]),
        (["0", "1"], ["b", "a"], [0, 1]),
        (["caf\u00e9", "x"], ["x", "cafe\u0301"], [1, 0]),
    ],
)
def test_the_place_of_each_class_among_anothers(wanted, given, order):
    assert places(wanted, given, whose="one", other="other") == order


def test_another_number_of_classes_never_fits():
    with pytest.raises(KD3Error, match="one knows 2 classes but other 3"):
        places(["0", "1"], ["a", "b", "c"], whose="one", other="other")


def test_an_export_is_held_against_the_teacher_by_name(tmp_path):
    import torch

    from kd3.commands.export import _teacher_logits
    from kd3.config.commands import ExportConfig
    from kd3.config.records import Signature
    from kd3.models.student import Student

    signature = Signature([0.0] * 3, [1.0] * 3, 16, ["apple", "pear", "plum", "fig"])
    student = Student(network([0, 1, 2, 3]), signature)
    other = teacher(tmp_path, [3, 0, 2, 1], TURNED)
    config = ExportConfig(run="unused", out="unused", teacher=str(other))
    images = torch.randint(0, 256, (32, 3, 16, 16), dtype=torch.uint8)
    theirs = _teacher_logits(config, student, images)
    assert theirs is not None
    torch.testing.assert_close(theirs, student(student.normalise(images)).detach())


def test_a_live_teacher_is_compared_by_name_too(tmp_path):
    data = pictures(tmp_path / "data", {"apple": 0, "pear": 1})
    models = [
        kd3.Teacher(network(kinds), mean=[0] * 3, std=[1] * 3, input_size=16, classes=classes)
        for kinds, classes in (([0, 1], ["apple", "pear"]), ([1, 0], ["pear", "apple"]))
    ]
    assert kd3.evaluate(models[0], data, teacher=models[1]).agreement == 100
