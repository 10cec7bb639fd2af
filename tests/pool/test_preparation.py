"""Pictures are made squares in one way, that of the student's pool, by all commands."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import kd3
from kd3.config.records import Preparation, Signature
from kd3.evaluation.compatibility import fitted
from kd3.evaluation.labelled import LabelledImages
from kd3.evaluation.shift_measure import Reference
from kd3.exports.comparison import images_of
from kd3.inheritance.recalled import read_images
from kd3.models.load_teacher import load_teacher
from kd3.models.student import own_head
from kd3.models.student_files import save_student
from kd3.pool import derive_pool
from kd3.pool.merge import merge_pools
from kd3.runtime.errors import KD3Error

CLASSES = ["dark", "middle", "bright"]
LEVELS = [30, 120, 220]
NET = """
import torch
from torch import nn


class RightEdge(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.levels = nn.Parameter(torch.tensor([30.0, 120.0, 220.0]) / 255)

    def forward(self, x):  # the grey of the right fifth, which a crop of a wide picture lacks
        edge = x[..., -(x.shape[-1] // 5) :].mean(dim=(1, 2, 3))
        return -100 * (edge[:, None] - self.levels) ** 2
"""


def wide(level, draw):
    values = np.full((20, 70, 3), 120, np.uint8)
    values[:, :50] = draw.integers(0, 256, 3)
    values[:, 50:] = level
    return Image.fromarray(values)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Wide pictures that only their right edge tells apart, a teacher that sees it, pools by both ways, a student."""
    folder = tmp_path_factory.mktemp("wide")
    draw = np.random.default_rng(0)
    for name, level in zip(CLASSES, LEVELS, strict=True):
        (folder / "test" / name).mkdir(parents=True)
        for number in range(8):
            wide(level, draw).save(folder / "test" / name / f"{number}.png")
    (folder / "net.py").write_text(NET)
    torch.save({"levels": torch.tensor(LEVELS) / 255}, folder / "weights.pt")
    for fit in ("crop", "squash"):
        kd3.ingest(folder / "test", folder / fit, image_size=16, fit=fit, workers=0)
        describe(folder, f"{fit}.yaml", fit=fit)
    describe(folder, "open.yaml")
    student = own_head(
        load_teacher(folder / "open.yaml").module,
        Signature([0, 0, 0], [1, 1, 1], 16, CLASSES, "squash"),
        name="right edge",
    )
    save_student(student, folder / "student", arch=f"{folder / 'net.py'}:RightEdge", arch_args={}, about={})
    return folder


def describe(folder, name, **more):
    description = {
        "arch": "net.py:RightEdge",
        "weights": "weights.pt",
        "num_classes": 3,
        "mean": [0, 0, 0],
        "std": [1, 1, 1],
        "input_size": 16,
        "classes": CLASSES,
        **more,
    }
    (folder / name).write_text(yaml.safe_dump(description))


@pytest.mark.parametrize(("model", "sees"), [("squash.yaml", True), ("crop.yaml", False), ("student", True)])
def test_a_model_is_evaluated_on_pictures_as_it_sees_them(model, sees, place):
    found = kd3.evaluate(place / model, place / "test", workers=0, trust_code=True)
    assert (found.top1 == 100) == sees


def test_its_predictions_too(place):
    found = kd3.predict(place / "student", [place / "test"], trust_code=True).images
    assert len(found) == 24
    assert all(name.split("/")[-2] == best[0][0] for name, best in found)


def test_a_teacher_is_asked_about_the_student_s_pictures(place):
    found = kd3.evaluate(place / "student", place / "test", teacher=place / "open.yaml", workers=0, trust_code=True)
    assert found.agreement == 100
    with pytest.raises(KD3Error, match=r"described with fit: crop but these images were made by squash"):
        kd3.evaluate(place / "student", place / "test", teacher=place / "crop.yaml", workers=0, trust_code=True)


def test_a_teacher_sees_as_its_pool_unless_it_was_said_otherwise(place):
    squashed, cropped = kd3.ImagePool.open(place / "squash"), kd3.ImagePool.open(place / "crop")
    teacher = load_teacher(place / "open.yaml")
    for pool in (squashed, cropped, squashed):  # whatever it was asked about before
        assert fitted(teacher, pool)[0].preparation == pool.preparation == Preparation(16, pool.path.name)
    with pytest.raises(KD3Error, match="ingest the crawl with --fit crop, or leave fit out of the description"):
        fitted(load_teacher(place / "crop.yaml"), squashed)


def test_a_student_is_measured_in_training_and_kept_as_its_pool_was_made(place, tmp_path):
    settings = {"images": 64, "batch_size": 16, "holdout": 4, "method": "kd", "device": "cpu", "precision": "32"}
    settings["eval_data"] = str(place / "test")
    teacher = place / "open.yaml"
    run = kd3.distill(teacher, "kd3:resnet8", place / "squash", tmp_path / "run", **settings)
    assert run.student.preparation == Preparation(16, "squash")
    written = json.loads((tmp_path / "run/student/config.json").read_text())["preparation"]
    assert written["fit"] == "squash"
    found = kd3.evaluate(tmp_path / "run", place / "test", workers=0)
    assert len({pair["test_key"] for pair in found.leak["pairs"]}) == 24


def test_a_reference_is_made_as_the_pool(place):
    from kd3.runtime.compute import resolve

    pool = kd3.ImagePool.open(place / "squash")
    teacher, _ = fitted(load_teacher(place / "open.yaml"), pool)
    reference = Reference(str(place / "test"), teacher, limit=100, seed=0, workers=0)
    images = torch.cat([batch for batch, _ in reference.batches(resolve("cpu", "32"))])
    assert {bytes(image.numpy()) for image in images} == {bytes(image) for image in pool.read(slice(0, 24))}


def test_a_reference_pool_that_was_made_otherwise_is_spoken_of(place, capsys):
    teacher, _ = fitted(load_teacher(place / "open.yaml"), kd3.ImagePool.open(place / "squash"))
    Reference(str(place / "crop"), teacher, limit=100, seed=0, workers=0)
    assert "the reference pool" in " ".join(capsys.readouterr().err.split())


def test_images_to_check_an_export_on_are_made_as_the_student_s(place, capsys):
    pool = kd3.ImagePool.open(place / "squash")
    found = images_of(str(place / "test"), Preparation(16, "squash"), compare=24, calibrate=0)
    assert {bytes(image.numpy()) for image in found.compared} == {bytes(image) for image in pool.read(slice(0, 24))}
    images_of(str(place / "crop"), Preparation(16, "squash"), compare=5, calibrate=0)
    assert "was made by --fit crop" in " ".join(capsys.readouterr().err.split())


def test_images_that_a_student_is_adapted_to_are_made_as_its_own(place):
    pool = kd3.ImagePool.open(place / "squash")
    found = read_images(str(place / "test"), Preparation(16, "squash"), limit=100, seed=0, workers=0)
    assert {bytes(image.numpy()) for image in found.images} == {bytes(image) for image in pool.read(slice(0, 24))}


def test_pools_of_pools_remember_how_their_pictures_were_made(place, tmp_path):
    part = derive_pool(place / "squash", tmp_path / "part", share=0.5)
    rest = kd3.ingest(place / "test/dark", tmp_path / "rest", image_size=16, fit="squash", workers=0)
    both = merge_pools([place / "squash", rest], tmp_path / "both")
    assert part.preparation == both.preparation == Preparation(16, "squash")


def test_a_pool_of_an_earlier_kd3_is_read_by_its_settings(place, tmp_path):
    pool = kd3.ingest(place / "test/dark", tmp_path / "pool", image_size=16, fit="squash", workers=0)
    path = tmp_path / "pool/manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["preparation"]
    path.write_text(json.dumps(manifest))
    assert kd3.ImagePool.open(tmp_path / "pool").preparation == pool.preparation == Preparation(16, "squash")
    manifest["preparation"] = {"fit": "pad"}
    path.write_text(json.dumps(manifest))
    with pytest.raises(KD3Error, match=r"preparation\.fit is 'pad'; this kd3 knows crop, squash"):
        _ = kd3.ImagePool.open(tmp_path / "pool").preparation


def test_labelled_images_are_made_as_they_are_asked_for(place):
    options = {"class_names": CLASSES, "workers": 0}
    squashed = LabelledImages(str(place / "test"), preparation=Preparation(16, "squash"), **options)
    images, labels = next(squashed.batches())
    edge = images[:, 0, 8, -1].tolist()
    assert [LEVELS[label] for label in labels] == edge


def test_a_fit_that_is_none_is_refused(place, tmp_path):
    describe(place, "odd.yaml", fit="pad")
    with pytest.raises(KD3Error, match=r"fit .*'crop' or 'squash'"):
        load_teacher(place / "odd.yaml")
