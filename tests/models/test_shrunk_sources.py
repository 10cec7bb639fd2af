"""Teachers of every source, made smaller, distilled for a few steps and exported."""

from pathlib import Path

import pytest
import torch
import yaml
from model_libraries import need
from torch import nn

import kd3
from kd3.models.arch import build_arch

OWN_CODE = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12)

    def forward(self, x):
        return x + torch.relu(self.norm(self.conv(x)))


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem, self.one, self.two, self.head = nn.Conv2d(3, 12, 3, 2), Block(), Block(), nn.Linear(12, num_classes)

    def forward(self, x):
        return self.head(self.two(self.one(self.stem(x))).mean((2, 3)))
"""


def described(folder: Path, arch: str) -> str:
    """Write the description of an untrained teacher of three classes."""
    torch.manual_seed(1)
    network = build_arch(arch, num_classes=3, relative_to=folder, input_size=16)
    torch.save(network.state_dict(), folder / "weights.pt")
    return _written(folder, arch=arch, weights="weights.pt", num_classes=3)


def transformer(folder: Path) -> str:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 48, "num_hidden_layers": 3}
    network: nn.Module = ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=4, num_labels=3))
    network.save_pretrained(folder / "vit")
    return _written(folder, arch="hf:./vit")


def _written(folder: Path, **values: object) -> str:
    values = {**values, "mean": [0.5] * 3, "std": [0.25] * 3, "input_size": 16}
    (folder / "teacher.yaml").write_text(yaml.safe_dump(values))
    return str(folder / "teacher.yaml")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("arch", "student"),
    [
        ("kd3:resnet14", "shrink:0.3"),
        ("kd3:wrn_16_1", "shrink:width:0.4"),
        ("kd3:vgg8", "shrink:0.3"),
        ("net.py:Net", "shrink:0.3"),
        ("hf", "shrink:0.7"),
        ("timm:test_resnet", "shrink:0.5"),
        ("timm:test_vit", "shrink:0.5"),
        ("torchvision:resnet18", "shrink:width:0.3"),
    ],
)
def test_shrunk_teachers_from_anywhere_are_distilled_and_exported(arch, student, tmp_path, pool_folder):
    pytest.importorskip("torch_pruning")
    if arch == "hf":
        need("transformers")
    elif (library := arch.partition(":")[0]) in ("timm", "torchvision"):
        need(library)
    (tmp_path / "net.py").write_text(OWN_CODE)
    teacher = transformer(tmp_path) if arch == "hf" else described(tmp_path, arch)
    run = kd3.distill(teacher, student, pool_folder, tmp_path / "run", images=96, batch_size=32, quiet=True)
    shipped = kd3.export(run.folder, tmp_path / "out", trust_code=True, quiet=True)
    onnx = next(one for one in shipped.files if one.file == "student.onnx")
    logits = run.student(run.student.normalise(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)))
    assert onnx.largest_difference <= 1e-4 * max(1.0, float(logits.detach().abs().max()))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "of its multiply-adds, distilled with kd3" in card
