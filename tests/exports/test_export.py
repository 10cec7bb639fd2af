"""A run becomes files that run without kd3; a file that differs from the student is removed."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import kd3
from kd3.exports import formats
from kd3.runtime.errors import KD3Error

SMALL = {"images": 160, "batch_size": 16, "holdout": 12, "precision": "32", "device": "cpu", "warmup_steps": 2}
FORMATS = ["onnx", "torch-export", "torchscript", "safetensors"]


@pytest.fixture(scope="module")
def run(teacher_file, pool_folder, tmp_path_factory):
    return kd3.distill(teacher_file, "kd3:resnet8", pool_folder, tmp_path_factory.mktemp("run") / "a", **SMALL)


@pytest.fixture(scope="module")
def images(pool_folder):
    return torch.from_numpy(kd3.ImagePool.open(pool_folder).read(np.arange(40)))


@pytest.fixture(scope="module")
def shipped(run, teacher_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("shipped") / "all"
    settings = {"format": FORMATS, "int8": True, "check_images": 60, "calibration_images": 30, "min_agreement": 0}
    return kd3.export(run.folder, out, teacher=str(teacher_file), **settings)


def logits_of(student, images):
    with torch.no_grad():
        return student(student.normalise(images)).numpy()


def assert_same_function(found, expected):
    assert np.abs(found - expected).max() <= 1e-4 * max(1, np.abs(expected).max())


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("count", [1, 5, 40])
def test_the_onnx_file_is_the_student_for_any_number_of_images(count, shipped, run, images):
    found = session(shipped.folder / "student.onnx").run(None, {"images": images[:count].numpy()})[0]
    assert_same_function(found, logits_of(run.student, images[:count]))


def test_so_are_the_files_of_pytorch_and_the_folder(shipped, run, images):
    expected = logits_of(run.student, images)
    program = torch.export.load(shipped.folder / "student.pt2").module()
    assert_same_function(program(images).detach().numpy(), expected)
    np.testing.assert_array_equal(logits_of(kd3.load_student(shipped.folder / "student"), images), expected)
    with pytest.warns(DeprecationWarning, match="jit"):
        script = torch.jit.load(str(shipped.folder / "student.ts"))
    assert_same_function(script(images).detach().numpy(), expected)


def test_no_batch_norm_is_left_in_the_graph_and_the_class_names_are(shipped):
    model = onnx.load(str(shipped.folder / "student.onnx"))
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(about["classes"]) == ["cat", "dog", "ship"]
    assert about["input_size"] == "16"
    assert json.loads(about["std"]) == [0.25, 0.25, 0.25]


def test_with_the_preprocessing_outside_the_graph_takes_normalised_floats(run, images, tmp_path):
    kd3.export(run.folder, tmp_path / "out", preprocessing="outside", check_images=20)
    normalised = run.student.normalise(images).numpy()
    found = session(tmp_path / "out/student.onnx").run(None, {"images": normalised})[0]
    assert_same_function(found, logits_of(run.student, images))


def test_what_was_measured_is_told_in_the_report_and_the_card(shipped):
    report = json.loads((shipped.folder / "export.json").read_text())
    assert [one["file"] for one in report["files"]] == [
        "student.onnx", "student.pt2", "student.ts", "student/", "student-int8.onnx",
    ]  # fmt: skip
    assert all(one["same_class"] == 100 for one in report["files"][:-1])
    assert all(one["milliseconds"]["1"] > 0 and one["bytes"] > 1000 for one in report["files"])
    assert all(0 <= one["teacher_agreement"] <= 100 for one in report["files"])
    card = (shipped.folder / "README.md").read_text()
    assert card.startswith("---\n")
    for one in report["files"]:
        assert f"`{one['file']}`" in card
    assert "cat, dog, ship" in card


def test_of_the_ways_into_8_bits_the_one_that_agrees_best_is_kept(shipped, run, images):
    shares = [one.to_choose for one in shipped.eight_bits]
    assert len(shares) == 4
    assert shares == sorted(shares, reverse=True)
    model = onnx.load(str(shipped.folder / "student-int8.onnx"))
    assert any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    found = session(shipped.folder / "student-int8.onnx").run(None, {"images": images.numpy()})[0]
    assert (found.argmax(1) == logits_of(run.student, images).argmax(1)).mean() > 0.5
    assert (shipped.folder / "student-int8.onnx").stat().st_size < (shipped.folder / "student.onnx").stat().st_size
    assert not list(shipped.folder.glob(".*"))


def test_8_bits_that_agree_too_little_are_refused_with_the_figures(run, tmp_path, monkeypatch):
    from kd3.exports import quantise

    monkeypatch.setattr(quantise, "agreement", lambda logits, others: 41.5)
    with pytest.raises(KD3Error, match=r"under --min-agreement 95: per channel, .*: 41\.5%.* nothing was written"):
        kd3.export(run.folder, tmp_path / "out", int8=True, check_images=20, calibration_images=10)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("preprocessing", ["inside", "outside"])
def test_the_example_of_the_card_runs_without_kd3_and_torch(preprocessing, run, shipped, crawl, tmp_path):
    folder = shipped.folder
    if preprocessing == "outside":
        folder = kd3.export(run.folder, tmp_path / "out", preprocessing="outside", check_images=20).folder
    example = (folder / "README.md").read_text().split("```python\n")[1].partition("```")[0]
    picture = sorted(crawl.glob("*.png"))[0]
    block = "import sys; sys.modules['torch'] = sys.modules['kd3'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", block + example.replace("picture.jpg", str(picture))],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.stdout.strip() == kd3.predict(run.folder, [picture]).images[0][1][0][0]


def test_the_onnx_files_ask_for_old_operators_and_the_card_says_which(shipped):
    card = (shipped.folder / "README.md").read_text()
    for name in ("student.onnx", "student-int8.onnx"):
        model = onnx.load(str(shipped.folder / name))
        assert model.ir_version <= 8
        assert [(one.domain, one.version) for one in model.opset_import if one.domain == ""] == [("", 17)]
        assert f"`{name}` is of IR {model.ir_version}, opset 17, and was run here with onnxruntime " in card


def test_the_other_snippets_of_the_card_run(shipped, images, monkeypatch):
    monkeypatch.chdir(shipped.folder)
    snippets = [
        part.partition("```")[0] for part in (shipped.folder / "README.md").read_text().split("```python\n")[1:]
    ]
    others = [snippet for snippet in snippets if "classify" not in snippet]
    assert len(others) == 3
    for snippet in others:
        names = {"images": images}
        with pytest.warns() if "jit" in snippet else torch.no_grad():
            exec(snippet, names)
        assert names["logits"].shape == (40, 3)


def test_a_file_that_is_not_the_student_is_not_left_there(run, tmp_path, monkeypatch):
    genuine = formats.write_torchscript

    def write(source, path):
        with torch.no_grad():
            next(source.module.parameters()).mul_(1.01)
        genuine(source, path)

    monkeypatch.setitem(
        formats.FORMATS, "torchscript", formats.Format("student.ts", write, formats.run_torchscript, "")
    )
    with pytest.raises(
        KD3Error, match=r"student\.ts is not the student: logits differ by up to .* nothing was written"
    ):
        kd3.export(run.folder, tmp_path / "out", format=["torchscript"], check_images=20)
    assert not list(tmp_path.iterdir())


def test_a_student_of_a_live_module_is_exported_with_it(teacher_file, pool_folder, tmp_path):
    def net():
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))

    done = kd3.distill(teacher_file, net(), pool_folder, tmp_path / "run", method="kd", **SMALL)
    with pytest.raises(KD3Error, match="distilled from a live module"):
        kd3.export(done.folder, tmp_path / "out", format=["safetensors"])
    written = kd3.export(done.folder, tmp_path / "out", module=net(), format=["safetensors", "onnx"], check_images=20)
    assert [one.file for one in written.files] == ["student/", "student.onnx"]


def test_a_student_alone_is_compared_on_images_that_are_named(run, crawl, tmp_path):
    alone = run.folder / "student"
    with pytest.raises(KD3Error, match="is no run, so no pool is known; name images"):
        kd3.export(alone, tmp_path / "a", format=["torchscript"])
    written = kd3.export(alone, tmp_path / "a", format=["torchscript"], images=str(crawl), check_images=30)
    assert (written.images, written.where) == (30, f"images of {crawl}")
    assert kd3.export(alone, tmp_path / "b", format=["torchscript"], images="none", check_images=9).where == "noise"


def test_a_pool_that_is_gone_is_reported(run, tmp_path):
    import shutil

    shutil.copytree(run.folder, tmp_path / "run")
    config = tmp_path / "run/config.yaml"
    config.write_text(config.read_text().replace("pool: ", "pool: /nowhere"))
    origin = tmp_path / "run/origin.json"  # holds where the pool was, seen from the run
    origin.write_text(json.dumps({**json.loads(origin.read_text()), "places": {}}))
    with pytest.raises(KD3Error, match=r"the pool /nowhere.* of the run .* is not there; name images"):
        kd3.export(tmp_path / "run", tmp_path / "out", format=["torchscript"])


WRONG = {
    "an unknown format": ({"format": ["onnxx"]}, r"format.*'onnx'"),
    "8 bits without ONNX": ({"format": ["torchscript"], "int8": True}, "add onnx to format"),
    "smaller images": ({"images": "POOL12"}, "has images of 12 pixels but the student takes 16"),
    "8 bits on noise": ({"images": "none", "int8": True, "check_images": 9}, "there are none; give --images"),
    "an opset without its operators": ({"opset": 11}, "--opset 11: this network cannot be written so .*leave it out"),
    "an opset of no ONNX": ({"opset": 9}, "opset"),
    "another teacher": ({"teacher": "TEACHER4"}, "they do not belong together"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_is_told_and_nothing_is_written(kind, run, crawl, teacher_file, tmp_path):
    settings, message = WRONG[kind]
    if settings.get("images") == "POOL12":
        kd3.ingest(crawl, tmp_path / "pool", image_size=12, workers=0)
        settings = {"images": str(tmp_path / "pool")}
    if "teacher" in settings:
        text = teacher_file.read_text().replace("input_size: 16", "input_size: 32")
        (teacher_file.parent / "other.yaml").write_text(text)
        settings = {"teacher": str(teacher_file.parent / "other.yaml")}
    with pytest.raises(KD3Error, match=message):
        kd3.export(run.folder, tmp_path / "out", **{"check_images": 20, **settings})
    assert not (tmp_path / "out").exists()


def test_an_unfinished_run_and_a_folder_in_use_are_refused(run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("pool: x\n")
    with pytest.raises(KD3Error, match="holds no finished run"):
        kd3.export(tmp_path / "run", tmp_path / "out")
    (tmp_path / "used").mkdir()
    (tmp_path / "used/mine.txt").write_text("x")
    with pytest.raises(KD3Error, match="is not empty; choose another --out"):
        kd3.export(run.folder, tmp_path / "used")


def test_a_missing_library_is_told_with_what_to_install(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(KD3Error, match=r"writing ONNX needs onnxscript, .*: pip install 'kd3\[export\]'"):
        kd3.export(run.folder, tmp_path / "out", check_images=20)
    assert not list(tmp_path.iterdir())
