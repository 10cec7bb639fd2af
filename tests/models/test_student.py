"""The student as one module that runs alone, on disk and off it."""

import dataclasses
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kd3.config.records import Preparation, Signature
from kd3.models.arch import build_arch
from kd3.models.student import own_head, shared_head
from kd3.models.student_files import load_student, save_student
from kd3.runtime.errors import KD3Error

EXPECTS = Signature((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 16, ["a", "b", "c"])


def make_shared(backbone=None):
    torch.manual_seed(0)
    backbone = backbone or build_arch("kd3:resnet8", num_classes=3)
    classifier = nn.Linear(20, 3)
    return shared_head(backbone, EXPECTS, name="resnet8", classifier=classifier, projector_width=None, final_relu=True)


def images(count=2):
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_logits_are_the_teachers_classifier_on_the_pooled_projected_features():
    student = make_shared().eval()
    x = student.normalise(images())
    features, output = student.outputs(x)
    assert features.shape[1] == 64
    assert output.features.shape[1] == 20
    torch.testing.assert_close(student.classifier(output.features.mean((2, 3))), output.logits)
    torch.testing.assert_close(student(x), output.logits)


def test_the_shared_classifier_is_frozen_and_the_backbones_own_is_gone():
    student = make_shared()
    trained = [name for name, p in student.named_parameters() if p.requires_grad]
    assert not any(name.startswith("classifier") for name in trained)
    assert not any("linear" in name for name in dict(student.backbone.named_parameters()))
    student(student.normalise(images())).sum().backward()
    assert all(p.grad is not None for name, p in student.named_parameters() if name in trained)


def test_normalise_is_the_teachers_normalisation_of_rgb_in_0_to_1():
    student = make_shared()
    x = images()
    expected = (x.double() / 255 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(
        3, 1, 1
    )
    torch.testing.assert_close(student.normalise(x).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [make_shared, lambda: own_head(build_arch("kd3:resnet8", num_classes=3), EXPECTS, name="resnet8")],
)
def test_a_saved_student_gives_the_same_logits_in_a_fresh_process(make, tmp_path):
    student = make().eval()
    save_student(student, tmp_path / "student", arch="kd3:resnet8", arch_args={}, about={})
    torch.save((images(), student(student.normalise(images())).detach()), tmp_path / "expected.pt")
    code = (
        "import sys, torch, kd3\n"
        "x, expected = torch.load(sys.argv[2])\n"
        "s = kd3.load_student(sys.argv[1])\n"
        "assert torch.equal(s(s.normalise(x)), expected)\n"
        "assert not s.training\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "student"), str(tmp_path / "expected.pt")]
    subprocess.run(command, check=True, cwd=tmp_path)


def test_a_larger_map_is_pooled_to_the_teachers_before_the_projector(tmp_path):
    torch.manual_seed(0)
    options = {"classifier": nn.Linear(20, 3), "projector_width": None, "final_relu": True}
    backbone = build_arch("kd3:resnet8", num_classes=3)
    student = shared_head(backbone, EXPECTS, name="resnet8", **options, teacher_map=(2, 2)).eval()
    x = student.normalise(images())
    features, output = student.outputs(x)
    assert features.shape[2:] == (4, 4)
    pooled = features.reshape(2, 64, 2, 2, 2, 2).mean((3, 5))
    expected = pooled
    for layer in student.projector:
        expected = layer(expected)
    torch.testing.assert_close(output.features, expected)
    after = nn.functional.adaptive_avg_pool2d(nn.Sequential(*student.projector)(features), 2)
    assert not torch.allclose(output.features, after)
    save_student(student, tmp_path, arch="kd3:resnet8", arch_args={}, about={})
    torch.testing.assert_close(load_student(tmp_path)(x), student(x))


@pytest.mark.parametrize("size", [(4, 4), (8, 8)])
def test_a_map_that_is_not_larger_is_not_pooled(size):
    options = {"classifier": nn.Linear(20, 3), "projector_width": None, "final_relu": True}
    student = shared_head(
        build_arch("kd3:resnet8", num_classes=3), EXPECTS, name="resnet8", **options, teacher_map=size
    )
    assert student.projector.size is None


def test_an_architecture_from_a_file_travels_with_the_student(tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def build(num_classes, width=4):\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),\n"
        "                         nn.Linear(width, num_classes))\n"
    )
    arch = f"{tmp_path / 'net.py'}:build"
    student = make_shared(build_arch(arch, num_classes=3, arch_args={"width": 6})).eval()
    save_student(student, tmp_path / "student", arch=arch, arch_args={"width": 6}, about={})
    (tmp_path / "net.py").unlink()
    x = student.normalise(images())
    torch.testing.assert_close(load_student(tmp_path / "student", trust_code=True)(x), student(x))


def test_a_live_modules_student_needs_the_module_again(tmp_path):
    student = make_shared().eval()
    save_student(student, tmp_path, arch=None, arch_args={}, about={})
    with pytest.raises(KD3Error, match="live module"):
        load_student(tmp_path)
    again = load_student(tmp_path, module=build_arch("kd3:resnet8", num_classes=3))
    x = student.normalise(images())
    torch.testing.assert_close(again(x), student(x))


def test_the_description_is_a_golden_format(tmp_path):
    save_student(make_shared(), tmp_path, arch="kd3:resnet8", arch_args={}, about={"method": "kd3"})
    description = json.loads((tmp_path / "config.json").read_text())
    assert description == {
        "format": "kd3-student",
        "version": 1,
        "arch": "kd3:resnet8",
        "arch_args": {},
        "num_classes": 3,
        "classes": ["a", "b", "c"],
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
        "input_size": 16,
        "preparation": {"size": 16, "fit": "crop", "resampling": "bicubic", "colours": "rgb", "channels": 3},
        "head": {
            "classifier": "linear",
            "features": "layer3",
            "side": "output",
            "relu": False,
            "channels": 64,
            "num_classes": 3,
        },
        "projector": {"kind": "simkd", "in_channels": 64, "out_channels": 20, "width": 10, "final_relu": True},
        "classifier": {"in_features": 20, "out_features": 3, "bias": True},
        "about": {"method": "kd3"},
    }


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "config.json is missing"),
        (lambda d: (d / "config.json").write_text("{"), "cannot be read"),
        (lambda d: (d / "config.json").write_text("{}"), "is not of the format kd3-student"),
        (lambda d: (d / "model.safetensors").write_bytes(b"x"), "cannot be read as safetensors"),
        (lambda d: (d / "model.safetensors").unlink(), "cannot be read as safetensors"),
        (lambda d: edit(d, version=99), "upgrade kd3"),
        (lambda d: edit(d, classes=["a", "b"], num_classes=2), "does not fit"),
        (lambda d: edit(d, head={"no": 1}), "does not describe a student"),
        (lambda d: edit(d, mean=[0.5, math.nan, 0.3]), "mean.1 .*finite"),
        (lambda d: edit(d, mean=None), "mean .*list"),
        (lambda d: edit(d, std=[0.2, -0.3, 0.4]), "greater than 0"),
        (lambda d: edit(d, std=[0.2, 0, 0.4]), "greater than 0"),
        (lambda d: edit(d, std=[0.2]), "a value for each channel"),
        (lambda d: edit(d, classes=["a", "b", "a"]), "lists 'a' more than once"),
        (lambda d: edit(d, classes=["a", "b"]), "2 names but num_classes is 3"),
        (lambda d: edit(d, input_size=10**12), "input_size"),
        (lambda d: edit(d, num_classes=10**30), "num_classes"),
        (lambda d: edit(d, arch_args=[]), "arch_args"),
        (
            lambda d: edit(
                d, projector={"in_channels": 60000, "out_channels": 60000, "width": 60000, "final_relu": True}
            ),
            "far larger network than its weights",
        ),
        (
            lambda d: edit(d, classifier={"in_features": 64000, "out_features": 1000000, "bias": False}),
            "far larger network than its weights",
        ),
        (
            lambda d: rewrite(d, lambda text: text.replace('"num_classes": 3', '"num_classes": ' + "9" * 6000)),
            "cannot be read",
        ),
        (lambda d: rewrite(d, lambda text: '{"a": ' + "[" * 200_000 + "]" * 200_000 + "}"), "nested too deep"),
        (lambda d: rewrite(d, lambda text: text + " " * (65 << 20)), "more than 64 MiB"),
        (lambda d: replaced(d, os.mkfifo), "no file|is missing"),
        (lambda d: weighed(d, "backbone.linear.bias", math.inf), "not finite, first in 'backbone.linear.bias'"),
        (lambda d: weighed(d, "backbone.conv1.weight", math.nan), "not finite, first in 'backbone.conv1.weight'"),
        (lambda d: weighed(d, "backbone.bn1.running_var", -1.0), "negative variances"),
        (lambda d: edit(d, preparation={"fit": "pad"}), "preparation.fit is 'pad'; this kd3 knows crop, squash"),
        (lambda d: edit(d, preparation={"size": 99}), "preparation.size is 99; this kd3 knows 16"),
        (lambda d: edit(d, preparation={"channels": 1}), "preparation.channels is 1; this kd3 knows 3"),
        (lambda d: edit(d, preparation={"gamma": 2}), "preparation.gamma is not known"),
    ],
)
def test_a_damaged_student_is_refused_in_a_sentence(damage, message, tmp_path):
    student = own_head(build_arch("kd3:resnet8", num_classes=3), EXPECTS, name="resnet8")
    save_student(student, tmp_path, arch="kd3:resnet8", arch_args={}, about={})
    damage(tmp_path)
    with pytest.raises(KD3Error, match=message):
        load_student(tmp_path)


def rewrite(folder, change):
    path = folder / "config.json"
    path.write_text(change(path.read_text()))


def replaced(folder, make):
    (folder / "config.json").unlink()
    make(folder / "config.json")


def weighed(folder, name, value):
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[0] = value
    save_file(tensors, folder / "model.safetensors")


def edit(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_student_with_another_number_of_classes_is_refused():
    with pytest.raises(KD3Error, match="has 5 logits but the teacher knows 3 classes"):
        own_head(build_arch("kd3:resnet8", num_classes=5), EXPECTS, name="resnet8")


@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_how_its_pictures_are_made_is_kept_with_the_student(fit, tmp_path):
    student = own_head(build_arch("kd3:resnet8", num_classes=3), dataclasses.replace(EXPECTS, fit=fit), name="resnet8")
    save_student(student, tmp_path, arch="kd3:resnet8", arch_args={}, about={})
    assert load_student(tmp_path).preparation == Preparation(16, fit)


def test_a_folder_of_an_earlier_kd3_sees_the_centre_of_pictures(tmp_path):
    student = own_head(build_arch("kd3:resnet8", num_classes=3), EXPECTS, name="resnet8")
    save_student(student, tmp_path, arch="kd3:resnet8", arch_args={}, about={})
    path = tmp_path / "config.json"
    description = json.loads(path.read_text())
    del description["preparation"]
    path.write_text(json.dumps(description))
    assert load_student(tmp_path).preparation == Preparation(16, "crop")


@pytest.mark.parametrize(("white", "kind"), [(1.0, torch.float32), (255.0, torch.float64), (1.0, torch.float16)])
def test_floats_of_a_stated_range_are_normalised_as_bytes_are(white, kind):
    student, x = make_shared(), images()
    floats = (x.double() / 255 * white).to(kind)
    tolerance = 1e-2 if kind is torch.float16 else 1e-5
    torch.testing.assert_close(student.normalise(floats, white=white), student.normalise(x), rtol=0, atol=tolerance)


WRONG_IMAGES = {
    "floats without a range": (lambda x: x / 255, None, r"of floats it must know the range.*white=1\.0"),
    "bytes as floats": (lambda x: x.float(), 1.0, r"values from 0 to 255, where white=1 says 0 to 1"),
    "normalised before": (lambda x: (x / 255 - 0.5) / 0.2, 1.0, r"values from -2\.5 to 2\.5"),
    "not finite": (lambda x: x / 255 * torch.nan, 1.0, "values from nan"),
    "wide integers": (lambda x: x.long(), None, r"these are torch\.int64"),
    "wide integers of a range": (lambda x: x.int(), 255.0, r"these are torch\.int32"),
    "bytes of another white": (lambda x: x, 1.0, "uint8 images have 255 for white, not 1"),
    "no range at all": (lambda x: x / 255, 0.0, "of floats it must know the range"),
}


@pytest.mark.parametrize("kind", WRONG_IMAGES)
def test_other_images_are_refused_in_a_sentence(kind):
    make, white, message = WRONG_IMAGES[kind]
    with pytest.raises(KD3Error, match=message):
        make_shared().normalise(make(images()), white=white)
