"""Teachers of grey images and of one logit, from the first look to the exported student."""

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import kd3
from kd3.commands.inspect import inspect
from kd3.evaluation.compatibility import GREY_ALTERNATIVES, check_normalisation
from kd3.runtime.errors import KD3Error

SMALL = {"images": 96, "batch_size": 16, "holdout": 12, "precision": "32", "device": "cpu", "warmup_steps": 2}
NET = """
from torch import nn
def build(num_classes=2, channels=1, outputs=None):
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, outputs or num_classes))
"""


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grey")
    (folder / "net.py").write_text(NET)

    def write(name, **changes):
        values = {"arch": "net.py:build", "weights": f"{name}.pt", "num_classes": 2, "input_size": 16}
        values |= {"mean": [0.4], "std": [0.3], "classes": ["cat", "dog"], **changes}
        scope = {}
        exec(NET, scope)
        with torch.random.fork_rng():
            torch.manual_seed(7)
            network = scope["build"](values["num_classes"], **values.get("arch_args", {}))
            network[5].weight.data *= 20
            network.train()(torch.randn(64, values.get("arch_args", {}).get("channels", 1), 16, 16))
        torch.save(network.state_dict(), folder / f"{name}.pt")
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
        return folder / f"{name}.yaml"

    return write


@pytest.mark.parametrize(
    ("name", "changes", "student"),
    [
        ("grey", {}, "kd3:resnet8"),
        ("single", {"arch_args": {"outputs": 1}}, "own"),
        ("colour", {"arch_args": {"outputs": 1, "channels": 3}, "mean": [0.4] * 3, "std": [0.3] * 3}, "kd3:resnet8"),
    ],
)
def test_from_the_first_look_to_the_export(name, changes, student, described, pool_folder, labelled, tmp_path):
    teacher = described(name, **changes)
    said = str(inspect(teacher, pool=pool_folder))
    assert ("16 x 16 grey in [0, 1], mean (0.4)" in said) == (name != "colour")
    assert ("its one logit z stands for the logits (0, z)" in said) == (name != "grey")
    assert "can be shared (verified" in said
    arch = f"{teacher.parent / 'net.py'}:build" if student == "own" else student
    run = kd3.distill(teacher, arch, pool_folder, tmp_path / "run", **SMALL)
    assert 0 <= run.agreement <= 100
    rgb = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    loaded = run.student
    assert loaded(loaded.normalise(rgb)).shape == (3, 2)
    assert kd3.evaluate(run.folder, two_folders(labelled, tmp_path), teacher=teacher, trust_code=True).images == 16
    assert len(kd3.predict(run.folder, labelled / "cat" / "0.png", trust_code=True).images) == 1
    assert kd3.shift(teacher, pool_folder).measurement.opinions.images > 100
    kept = {"check_images": 12, "trust_code": True}
    exported = kd3.export(run.folder, tmp_path / "out", format=["torchscript", "safetensors"], **kept)
    assert all(one.same_class == 100 for one in exported.files)
    outside = kd3.export(run.folder, tmp_path / "o2", format=["torchscript"], preprocessing="outside", **kept)
    assert ("luma, 0.299 R + 0.587 G + 0.114 B" in (outside.folder / "README.md").read_text()) == (name != "colour")


def two_folders(labelled, folder):
    for name in ("cat", "dog"):
        copied = folder / "test" / name
        copied.mkdir(parents=True)
        for file in (labelled / name).iterdir():
            (copied / file.name).write_bytes(file.read_bytes())
    return folder / "test"


def test_other_settings_that_are_tried_on_grey_images_have_one_value():
    assert all(len(mean) == len(std) == 1 for mean, std in GREY_ALTERNATIVES.values())
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 3))
    teacher = kd3.Teacher(network, mean=[0.1307], std=[0.3081], input_size=8)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 3, 8, 8), dtype=np.uint8))
    found = check_normalisation(teacher, images)
    assert len(found.others) == len(GREY_ALTERNATIVES) - 1  # its own is left out, and no order of colours tried


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"std": [0.3] * 3}, "as many values"),
        ({"colours": "bgr"}, "colours: bgr is for three channels"),
        (
            {"num_classes": 3, "classes": ["a", "b", "c"], "arch_args": {"outputs": 1}},
            "puts out 1 logits",
        ),
    ],
)
def test_what_does_not_go_together_is_a_sentence(changes, message, described):
    with pytest.raises(KD3Error, match=message):
        kd3.load_teacher(described("wrong", **changes))
