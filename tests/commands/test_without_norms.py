"""A student without normalisation layers: the default rates may ruin it, and the run says so."""

import pytest

import kd3

SMALL = {"images": 64, "batch_size": 16, "holdout": 12, "device": "cpu", "dry_run": True}
PLAIN = """
import torch

def build(num_classes):
    layers = [torch.nn.Conv2d(3, 6, 3), NORM(6), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(6, num_classes))
"""
LOGITS = {"kd3": {"classifier": "own", "alignment": "none", "logit_weight": 1}}


@pytest.mark.parametrize(
    ("norm", "settings", "said"),
    [
        ("torch.nn.Dropout", {}, ["--lr 0.01 --matrix-lr 0.03", "--kd3.alignment none"]),
        ("torch.nn.Dropout", {"method": "kd"}, ["--lr 0.01 --matrix-lr 0.03"]),
        ("torch.nn.Dropout", {"lr": 0.01, "matrix_lr": 0.03, **LOGITS}, []),
        ("torch.nn.BatchNorm2d", {}, []),
        ("lambda width: torch.nn.GroupNorm(2, width)", {"method": "kd"}, []),
    ],
)
def test_a_student_without_normalisation_is_warned_of(
    norm, settings, said, teacher_file, pool_folder, tmp_path, capsys
):
    (tmp_path / "net.py").write_text(PLAIN.replace("NORM(6)", f"({norm})(6)").replace("Dropout)(6)", "Dropout)(0.5)"))
    kd3.distill(teacher_file, f"{tmp_path}/net.py:build", pool_folder, tmp_path / "run", **SMALL, **settings)
    warned = [line for line in capsys.readouterr().err.splitlines() if "no normalisation layers" in line]
    assert len(warned) == bool(said)
    assert all(words in line for line in warned for words in said)
    assert not any("--kd3" in line for line in warned) or "--kd3.alignment none" in said
