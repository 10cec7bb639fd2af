"""A student of several outputs learns by the one that is chosen, and keeps the choice in its folder."""

import pytest
import torch

import kd3
from in_process import here

CODE = """
from torch import nn

class TwoExits(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.early = nn.Linear(8, num_classes)
        self.body = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        self.late = nn.Linear(12, num_classes)

    def forward(self, x):
        x = self.stem(x)
        return {RETURNED}

def build(num_classes):
    return TwoExits(num_classes)
"""
PAIR = "[self.early(x.mean((2, 3))), self.late(self.body(x).mean((2, 3)))]"
NAMED = "dict(early=self.early(x.mean((2, 3))), late=self.late(self.body(x).mean((2, 3))))"
SMALL = ["--images", "32", "--batch-size", "16", "--holdout", "12", "--precision", "32", "--device", "cpu"]


def distilled(tmp_path, teacher_file, pool_folder, returned, *words):
    code = tmp_path / "exits.py"
    code.write_text(CODE.replace("{RETURNED}", returned))
    names = ["--teacher", teacher_file, "--student", f"{code}:build", "--pool", pool_folder, "--out", tmp_path / "run"]
    return here("distill", *names, *SMALL, "--recall", "off", "--track", "none", *words)


@pytest.mark.parametrize("method", ["kd", "kd3"])
@pytest.mark.parametrize(("returned", "chosen"), [(PAIR, "1"), (NAMED, "late")])
def test_the_chosen_output_is_trained_kept_and_predicts(method, returned, chosen, tmp_path, teacher_file, pool_folder):
    words = ["--method", method, "--student-output", chosen]
    done = distilled(tmp_path, teacher_file, pool_folder, returned, *words)
    assert done.returncode == 0, done.stderr
    assert "returns 2 outputs" not in done.stderr
    student = kd3.load_student(tmp_path / "run", trust_code=True)
    images = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        late = student.backbone.body(student.backbone.stem(images)).mean((2, 3))
        features = student.outputs(images)[0].mean((2, 3))
    torch.testing.assert_close(features, late)
    assert student.head.classifier == "late"


def test_without_a_choice_the_first_is_taken_and_the_flag_named(tmp_path, teacher_file, pool_folder):
    done = distilled(tmp_path, teacher_file, pool_folder, PAIR, "--method", "kd")
    assert "output 0 is taken for the logits; another is taken by --student-output 1" in done.stderr
    assert done.stderr.count("is taken for the logits") == 1
    assert kd3.load_student(tmp_path / "run", trust_code=True).head.classifier == "early"


def test_an_output_that_is_not_there_is_refused(tmp_path, teacher_file, pool_folder):
    done = distilled(tmp_path, teacher_file, pool_folder, PAIR, "--student-output", "2")
    assert done.returncode == 2
    assert "has no output 2; it returns 2 outputs" in done.stderr
    assert not (tmp_path / "run").exists()
