"""A student without normalisation layers: the usual learning rates would ruin it, so it has its own."""

import json

import pytest

import kd3

SMALL = {"images": 64, "batch_size": 16, "holdout": 12, "device": "cpu", "evals": 1, "recall": "off"}
PLAIN = """
import torch

def build(num_classes):
    layers = [torch.nn.Conv2d(3, 6, 3), NORM(6), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(6, num_classes))
"""
LOGITS = {"kd3": {"classifier": "own", "alignment": "none", "logit_weight": 1}}


OWN = "--lr 0.001 --matrix-lr 0.03"


@pytest.mark.parametrize(
    ("norm", "settings", "said"),
    [
        ("torch.nn.Dropout", {}, [OWN, "--kd3.alignment none"]),
        ("torch.nn.Dropout", {"method": "kd"}, [OWN]),
        ("torch.nn.Dropout", {"init": "random", "lr": 0.02}, ["--lr 0.02 --matrix-lr 0.03", "--kd3.alignment none"]),
        ("torch.nn.Dropout", {"method": "kd", "optimizer": "sgd"}, ["--lr 0.1"]),
        ("torch.nn.Dropout", LOGITS, [OWN]),
        ("torch.nn.BatchNorm2d", {}, []),
        ("lambda width: torch.nn.GroupNorm(2, width)", {"method": "kd"}, []),
    ],
)
def test_a_student_without_normalisation_has_rates_of_its_own(
    norm, settings, said, teacher_file, pool_folder, tmp_path, capsys
):
    (tmp_path / "net.py").write_text(PLAIN.replace("NORM(6)", f"({norm})(6)").replace("Dropout)(6)", "Dropout)(0.5)"))
    student = f"{tmp_path}/net.py:build"
    kd3.distill(teacher_file, student, pool_folder, tmp_path / "run", dry_run=True, **SMALL, **settings)
    lines = [line for line in capsys.readouterr().err.splitlines() if "no normalisation layers" in line]
    assert len(lines) == bool(said)
    assert all(words in line for line in lines for words in said)
    assert not any("--kd3" in line for line in lines) or "--kd3.alignment none" in said


@pytest.mark.parametrize(("norm", "rate"), [("torch.nn.Dropout(0.5)", 0.001), ("torch.nn.BatchNorm2d(6)", 0.1)])
def test_it_is_trained_with_them(norm, rate, teacher_file, pool_folder, tmp_path):
    (tmp_path / "net.py").write_text(PLAIN.replace("NORM(6)", norm))
    longer = {**SMALL, "images": 640, "method": "kd", "schedule": "step", "warmup_steps": 1}
    run = kd3.distill(teacher_file, f"{tmp_path}/net.py:build", pool_folder, tmp_path / "run", **longer)
    events = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert next(event["lr"] for event in events if event["event"] == "train") == pytest.approx(rate)
