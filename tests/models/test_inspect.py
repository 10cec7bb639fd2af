"""`kd3 inspect` describes any teacher, with remedies if the head cannot be shared."""

import json

import pytest
import torch
import yaml
from model_libraries import need
from test_model_sources import SMALL, described, hf_folder, own_file, torch_export_file, torchscript_file
from torch import nn

import kd3
from kd3.commands.inspect import inspect
from kd3.models.arch import build_arch

VIT = {"patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}
SHARED = "head        can be shared (verified"
OWN = "so the student needs a classifier of its own: --kd3.classifier own"
CASES = {
    "timm:test_resnet": ({}, ["classifier  'fc'", "(96 channels): 96 x 2 x 2", SHARED]),
    "timm:vit_tiny_patch16_224": (VIT, ["features    input vector of 'head' (24): 24 x 1 x 1", SHARED]),
    "timm:vit_tiny_patch16_224 averaged": ({**VIT, "global_pool": "avg"}, ["input vector of 'head' (24)", SHARED]),
    "timm:deit_tiny_distilled_patch16_224": (
        VIT,
        [
            "the mean of 2 heads, 'head' and 'head_dist'",
            f"{OWN} --kd3.alignment none --kd3.logit-weight 1, or --method",
        ],
    ),
    "timm:resnetv2_50": ({"layers": [1] * 4, "channels": [8] * 4}, ["classifier  'head.fc'", "8 x 2 x 2", SHARED]),
    "torchvision:squeezenet1_1": ({}, ["'classifier.1' puts out 7 values, and something follows", OWN]),
}


@pytest.mark.parametrize("kind", CASES)
def test_networks_of_the_libraries(kind, tmp_path):
    arch = kind.partition(" ")[0]
    need(arch.partition(":")[0])
    arch_args, lines = CASES[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_arch(arch, num_classes=7, arch_args=arch_args, input_size=64)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    path = tmp_path / "t.yaml"
    path.write_text(
        yaml.safe_dump({"arch": arch, "arch_args": arch_args, "weights": "w.pt", "num_classes": 7, "input_size": 64})
    )
    said = str(inspect(path))
    for line in lines:
        assert line in said
    assert "mean, std are not in the description, but as the library's own weights have it" in said
    assert "  pictures" not in said  # how the library's own were made says nothing of these


def test_a_folder_of_transformers(tmp_path):
    need("transformers")
    said = str(inspect(f"hf:{hf_folder(tmp_path / 'vit')}"))
    assert "input       16 x 16 RGB in [0, 1], mean (0.1, 0.2, 0.3), std (0.5, 0.5, 0.5)" in said
    assert "pictures    the whole picture squashed to 16 x 16 (kd3 ingest --fit squash)" in said
    assert "classifier  'classifier'" in said
    assert SHARED in said


@pytest.mark.parametrize("make", [torchscript_file, torch_export_file])
def test_programs_in_files(make, tmp_path):
    found = inspect(make(tmp_path))
    assert "cannot be shared: it is " in str(found)
    assert (found.parameters, found.multiply_adds) == (251, 42_360)  # 14 x 14 x 8 x 27 and 8 x 3
    assert found.features is None


def test_a_frozen_program_has_no_parameters_to_count(tmp_path):
    with pytest.warns(DeprecationWarning, match="jit"):
        torch.jit.save(
            torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(768, 3)).eval())), tmp_path / "t.ts"
        )
    assert "a frozen program, whose parameters cannot be counted, 2,304 multiply-adds" in str(
        inspect(described(tmp_path, arch="torchscript:t.ts"))
    )


def test_a_turned_network_says_so(tmp_path):
    path = own_file(tmp_path)
    values = {**yaml.safe_load(path.read_text()), "colours": "bgr"}
    found = inspect(described(tmp_path, **values))
    assert "it was trained on B, G, R; its first layer is turned" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["colours"] == "bgr"


COSINE = """
from torch import nn
class Cosine(nn.Linear):
    def forward(self, x):
        return 10 * super().forward(nn.functional.normalize(x, dim=1))
def build(num_classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Cosine(8, num_classes))
"""


def test_a_classifier_that_is_more_than_linear_keeps_its_features(tmp_path, pool_folder):
    (tmp_path / "net.py").write_text(COSINE)
    network = build_arch("net.py:build", num_classes=3, relative_to=tmp_path)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    path = described(tmp_path, arch="net.py:build", weights="w.pt")
    said = str(inspect(path))
    assert "(8 channels): 8 x 14 x 14" in said
    assert "cannot be shared: the classifier '4' is more than a linear layer (Cosine)" in said
    assert f"{OWN}, or --method kd" in said
    # And what it offers works.
    run = kd3.distill(path, "kd3:resnet8", pool_folder, tmp_path / "run", **SMALL, kd3={"classifier": "own"})
    assert 0 <= run.agreement <= 100


def test_inspect_shows_part_by_part_what_a_student_would_inherit(teacher_file):
    found = inspect(teacher_file, student="kd3:resnet8")
    text = str(found)
    assert "inherits 100% of its parameters" in text
    line = next(line for line in text.splitlines() if line.strip().startswith("layer2.0"))
    assert line.split() == ["layer2.0", "layer2.0", "13,952", "whole"]
    parts = found.to_dict()["inheritance"]["parts"]
    assert sum(part["parameters"] for part in parts) == found.parameters
    other = inspect(teacher_file, student="kd3:mobilenet_v2")
    assert "inherits nothing" in str(other)
