"""`kd3 cascade`: its record, the users of the record, refusals; and the loss of accuracy."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import kd3
from in_process import here
from kd3.evaluation.cascade import margins
from kd3.runtime.errors import KD3Error

BUDGET = {"images": 320, "batch_size": 16, "holdout": 12, "device": "cpu", "precision": "32", "track": "none"}
PROMISE = ("--agreement", 85, "--confidence", 80)


@pytest.fixture(scope="module")
def teacher(centred_teacher_file):
    return centred_teacher_file


@pytest.fixture(scope="module")
def trained(teacher, pool_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("cascade") / "run"
    kd3.distill(teacher, "kd3:resnet8", pool_folder, out, method="kd", seed=1, **BUDGET)
    return out


@pytest.fixture(scope="module")
def camera(tmp_path_factory):
    """Two hundred pictures of the crawl's kind."""
    folder = tmp_path_factory.mktemp("camera")
    draw = np.random.default_rng(7)
    for number in range(200):
        colours = draw.integers(0, 256, (3, 3, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((20, 20)).save(folder / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="module")
def cascaded(trained, camera, tmp_path_factory):
    out = tmp_path_factory.mktemp("cascaded") / "run"
    shutil.copytree(trained, out)
    done = here("cascade", out, "--deployment", camera, *PROMISE, "--json")
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout)


def test_the_record_lies_with_the_student_and_the_curve_beside_it(cascaded):
    run, record = cascaded
    student = json.loads((run / "student" / "config.json").read_text())["cascade"]
    assert {student[name] == record[name] for name in student} == {True}
    assert (student["agreement"], student["confidence"], student["images"]) == (85, 80, 200)
    assert {one["agreement"] for one in student["thresholds"]} == {85, 95, 98, 99}
    chosen = next(one for one in student["thresholds"] if one["agreement"] == 85)
    assert chosen["margin"] == student["threshold"] > 0
    assert chosen["reached"] >= 85
    kept = json.loads((run / "cascade.json").read_text())
    assert kept["threshold"] == student["threshold"]
    assert kept["curve"][0]["escalated"] == 0


def test_what_it_says_can_be_counted_again(cascaded, camera, teacher):
    """Agreement and share, from both networks' predictions, picture by picture."""
    run, record = cascaded
    theirs = {name: best[0][0] for name, best in kd3.predict(teacher, camera).images}
    own = kd3.predict(run, camera)
    asked = np.array(own.escalate)
    same = np.array([best[0][0] == theirs[name] for name, best in own.images])
    chosen = next(one for one in record["thresholds"] if one["agreement"] == 85)
    assert 100 * asked.mean() == pytest.approx(chosen["escalated"], abs=0.51)
    assert 100 * (same | asked).mean() == pytest.approx(chosen["reached"], abs=0.51)
    assert record["agreement_alone"] == pytest.approx(100 * same.mean(), abs=0.51)


def test_predict_scales_probabilities_and_marks_what_to_escalate(cascaded, trained, camera):
    run, record = cascaded
    student = kd3.load_student(run)
    assert (student.temperature, student.threshold) == (record["temperature"], record["threshold"])
    before, now = (json.loads(here("predict", one, camera, "--top", 3, "--json").stdout) for one in (trained, run))
    assert "escalate" not in before["images"][0]
    assert {one["escalate"] for one in now["images"]} == {True, False}
    for old, new in zip(before["images"], now["images"], strict=True):
        logits = torch.tensor([one["probability"] for one in old["classes"]]).log()
        expected = (logits / record["temperature"]).softmax(0)
        assert [one["probability"] for one in new["classes"]] == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-6)
        margin = float(margins(logits[None]))
        assert new["escalate"] == (margin < record["threshold"]) or abs(margin - record["threshold"]) < 1e-3
    text = here("predict", run, camera).stdout.splitlines()
    marked = ["escalate: ask the teacher" in line for line in text]
    assert marked == [one["escalate"] for one in now["images"]]


def test_the_export_carries_both_and_its_script_says_the_same(cascaded, camera, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    run, record = cascaded
    kd3.export(run, tmp_path / "ship", images=str(camera), check_images=40)
    metadata = {one.key: one.value for one in onnx.load(tmp_path / "ship" / "student.onnx").metadata_props}
    assert json.loads(metadata["threshold"]) == record["threshold"]
    assert json.loads(metadata["temperature"]) == record["temperature"]
    files = sorted(map(str, camera.iterdir()))[:40]
    script = [sys.executable, "-I", tmp_path / "ship" / "predict.py"]
    done = subprocess.run([*script, "--json", *files], capture_output=True, text=True, timeout=120, check=True)
    said = [json.loads(line) for line in done.stdout.splitlines()]
    expected = json.loads(here("predict", run, *files, "--json").stdout)["images"]
    assert [one["class"] for one in said] == [one["classes"][0]["class"] for one in expected]
    assert [one["escalate"] for one in said] == [one["escalate"] for one in expected]
    probabilities = [one["classes"][0]["probability"] for one in expected]
    assert [one["probability"] for one in said] == pytest.approx(probabilities, abs=1e-4)
    plain = subprocess.run([*script, *files], capture_output=True, text=True, timeout=120, check=True).stdout
    assert [line.endswith("\tescalate") for line in plain.splitlines()] == [one["escalate"] for one in said]
    card = (tmp_path / "ship" / "README.md").read_text()
    assert "When to ask the teacher" in card
    assert "85%, promised at 80% confidence" in card


def test_of_another_student_the_record_is_not_used(cascaded, tmp_path, monkeypatch):
    shutil.copytree(cascaded[0], tmp_path / "run")
    monkeypatch.setattr("kd3.inheritance.adapt.Judged.choose", lambda self: 1.0)
    assert here("adapt", tmp_path / "run", "--count", 40).returncode == 0
    done = here("predict", tmp_path / "run", cascaded[0].parent, "--json")
    assert "is of other weights and is ignored; run kd3 cascade again" in done.stderr
    assert kd3.load_student(tmp_path / "run").threshold is None
    page = kd3.report(tmp_path / "run", images=0, latency=False).path.read_text()
    assert "When to ask the teacher" not in page


@pytest.mark.parametrize(
    "damage", [{"temperature": 0}, {"thresholds": [{"agreement": 95}]}, {"calibration_error": {}}, {"of": "nothing"}]
)
def test_a_damaged_record_is_told_in_a_sentence(cascaded, camera, damage, tmp_path):
    shutil.copytree(cascaded[0], tmp_path / "run")
    path = tmp_path / "run" / "student" / "config.json"
    written = json.loads(path.read_text())
    path.write_text(json.dumps({**written, "cascade": {**written["cascade"], **damage}}))
    done = here("predict", tmp_path / "run", camera)
    assert (done.returncode, done.stdout) == (2, "")
    assert "does not describe a student" in done.stderr


def test_a_damaged_curve_is_left_out_of_the_report(cascaded, tmp_path):
    shutil.copytree(cascaded[0], tmp_path / "run")
    path = tmp_path / "run" / "cascade.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "curve": [{"escalated": 1}]}))
    page = kd3.report(tmp_path / "run", images=0, latency=False).path.read_text()
    assert "When to ask the teacher" not in page


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--agreement", 100], "agreement"),
        (["--confidence", 40], "confidence"),
        ([], "has 12 usable images; at least 16 are needed to compare student and teacher on"),
        (["--deployment", "CAMERA", "--agreement", 99.9], "needs at least 2,995 images"),
        (["--deployment", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_promised_is_refused_and_the_run_stays_as_it_was(trained, camera, more, words, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    before = (tmp_path / "run" / "student" / "config.json").read_bytes()
    done = here("cascade", tmp_path / "run", *(camera if word == "CAMERA" else word for word in more))
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / "student" / "config.json").read_bytes() == before
    assert not (tmp_path / "run" / "cascade.json").exists()


def test_a_student_that_disagrees_everywhere_is_refused(trained, camera, teacher, tmp_path):
    """Its last layer is negated, so that its confident predictions always differ from its teacher's."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(trained, tmp_path / "run")
    path = tmp_path / "run" / "student" / "model.safetensors"
    weights = load_file(path)
    name = next(one for one in weights if one.endswith("linear.weight"))
    save_file({**weights, name: -weights[name].contiguous()}, path)
    done = here("cascade", tmp_path / "run", "--deployment", camera, "--agreement", 98)
    assert done.returncode == 2
    assert "cannot be promised" in done.stderr


def test_evaluate_says_what_the_cascade_reaches_and_writes_a_page(cascaded, labelled, teacher, tmp_path):
    run, _ = cascaded
    done = here(
        "evaluate", run, "--data", labelled, "--teacher", teacher, "--no-leak-check", "--out", tmp_path / "lost.html",
        "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    lost = record["lost"]
    assert lost["total"]["teacher"]["value"] == pytest.approx(record["teacher_top1"])
    assert lost["total"]["difference"]["value"] == pytest.approx(record["difference"])
    assert lost["total"]["only_student"] - lost["total"]["only_teacher"] == round(record["difference"] * 24 / 100)
    assert [one["name"] for one in lost["classes"]] == ["cat", "dog", "ship"]
    assert sum(one["only_teacher"] for one in lost["classes"]) == lost["total"]["only_teacher"]
    assert {"teacher", "student", "student as trained"} == lost["calibration_error"].keys()
    assert record["calibration_error"] == pytest.approx(lost["calibration_error"]["student"])
    reached = {one["promised"]: one for one in lost["cascade"]}
    assert reached[85]["agreement"]["value"] >= record["agreement"]
    page = (tmp_path / "lost.html").read_text()
    for words in ("What was lost", "only the teacher is right", "as sure as right", "The cascade on these"):
        assert words in page
    assert page.count("<img") == sum(
        min(8, one["only_teacher"]) for one in lost["classes"] if one["difference"]["value"] < 0
    )


def test_a_threshold_of_another_teacher_is_not_held_against_this_one(cascaded, labelled, teacher_file):
    done = here("evaluate", cascaded[0], "--data", labelled, "--teacher", teacher_file, "--no-leak-check", "--json")
    assert "of another teacher" in done.stderr
    assert json.loads(done.stdout)["lost"]["cascade"] == []


def test_a_page_without_a_teacher_is_refused(cascaded, labelled, tmp_path):
    done = here("evaluate", cascaded[0], "--data", labelled, "--out", tmp_path / "x.html")
    assert done.returncode == 2
    assert "add teacher" in done.stderr


def test_the_report_draws_the_curve_and_what_was_lost(cascaded, trained, labelled):
    text = kd3.report(cascaded[0], data=str(labelled), images=0, latency=False).path.read_text()
    assert "When to ask the teacher" in text
    assert "What was lost" in text
    assert "Chosen: 85" in text
    unasked = kd3.report(trained, images=40, latency=False).path.read_text()
    assert "No threshold is chosen yet" in unasked
    assert "What was lost" not in unasked


def test_what_speaks_against_the_figures_stands_on_every_page_of_them(trained, crawl, teacher, tmp_path, capsys):
    """Training images of the student, each in the folder of another class than the predicted one."""
    names = ["cat", "dog", "ship"]
    for picture, best in kd3.predict(trained, crawl).images:
        folder = tmp_path / "test" / names[(names.index(best[0][0]) + 1) % 3]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, folder)
    capsys.readouterr()
    data, page = str(tmp_path / "test"), str(tmp_path / "page.html")
    kd3.evaluate(trained, data, teacher=teacher, workers=0, out=page)
    said = [capsys.readouterr().err]
    shown = [(tmp_path / "page.html").read_text()]
    kd3.report(trained, data=data, images=0, latency=False, out=page)
    said.append(capsys.readouterr().err)
    shown.append((tmp_path / "page.html").read_text())
    for text in [*said, *shown]:
        assert "in another order than the labels" in text
        assert "labelled images are in the pool" in text
    assert "classes: class folders" in said[1]


def test_a_class_has_one_name_in_all_of_the_report(cascaded, labelled, tmp_path):
    """If the student only numbers its classes, the folders' names do not stand beside the numbers."""
    shutil.copytree(cascaded[0], tmp_path / "run")
    for path in (tmp_path / "run" / "student" / "config.json", tmp_path / "run" / "summary.json"):
        written = json.loads(path.read_text())
        path.write_text(json.dumps({**written, "classes": ["0", "1", "2"]}))
    text = kd3.report(tmp_path / "run", data=str(labelled), images=0, latency=False).path.read_text()
    page = text.partition("What was lost")[2].partition("When to ask the teacher")[0]
    assert "<td>2</td>" in page
    assert "labelled image" in page
    assert not any(name in page for name in ("cat", "dog", "ship"))


def test_nothing_is_taken_from_a_live_teacher_that_is_not_the_runs_own(trained, camera):
    other = kd3.Teacher(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 3)), mean=[0.5] * 3, std=[0.3] * 3,
                        input_size=16, classes=["cat", "dog", "ship"])  # fmt: skip
    with pytest.raises(KD3Error, match="is not the teacher of the run"):
        kd3.cascade(trained, deployment=camera, teacher=other, agreement=85, confidence=80)
