"""`kd3 distill --dry-run`: a description of the run, without training or writing."""

import json
import shutil

import pytest
import torch

import kd3
from in_process import here

FEW = ["--images", "160", "--batch-size", "16", "--holdout", "12", "--precision", "32", "--device", "cpu"]


@pytest.fixture
def home(tmp_path, teacher_file, pool_folder):
    shutil.copytree(teacher_file.parent, tmp_path / "teacher")
    # Other tests may have left the teacher's logits beside the shared pool.
    shutil.copytree(pool_folder, tmp_path / "pool", ignore=shutil.ignore_patterns("teacher_logits"))
    return tmp_path


def rehearsed(home, *words):
    names = ["--teacher", "teacher/teacher.yaml", "--student", "kd3:resnet8", "--pool", "pool", "--out", "runs/a"]
    return here("distill", *names, *FEW, "--dry-run", *words, cwd=home)


def all_below(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def test_it_tells_of_the_run_and_leaves_everything_as_it_was(home):
    before = all_below(home)
    done = rehearsed(home)
    assert done.returncode == 0, done.stderr
    assert all_below(home) == before
    assert "nothing was trained and nothing was written to runs/a" in done.stdout
    assert "10 of 16 images" in done.stdout
    assert "100% of its first weights from the teacher" in done.stdout


def test_json_says_the_same_and_holds_every_setting(home):
    before = all_below(home)
    record = json.loads(rehearsed(home, "--json", "--quiet", "--method", "kd").stdout)
    assert all_below(home) == before
    assert (record["budget"]["steps"], record["pool"]["training"], record["pool"]["held_out"]) == (10, 108, 12)
    assert record["student"] == {"arch": "kd3:resnet8", "parameters": 74835, "init": "random", "inherited": 0.0}
    assert record["settings"]["recall"] == "off"  # of method kd: resolved, not "default"
    assert [place["path"] for place in record["writes"]] == ["runs/a", "pool/teacher_logits"]
    assert record["memory"]["total"] > record["memory"]["step"] > 0


def test_the_run_that_follows_is_the_one_that_was_told_of(home):
    record = kd3.distill(
        home / "teacher" / "teacher.yaml",
        "kd3:resnet8",
        home / "pool",
        home / "run",
        dry_run=True,
        images=64,
        batch_size=16,
        holdout=12,
        device="cpu",
        precision="32",
    ).to_dict()
    run = kd3.distill(
        home / "teacher" / "teacher.yaml",
        "kd3:resnet8",
        home / "pool",
        home / "run",
        images=64,
        batch_size=16,
        holdout=12,
        device="cpu",
        precision="32",
    )
    assert (run.summary["steps"], run.summary["init"]) == (record["budget"]["steps"], record["student"]["init"])
    assert run.summary["inherited"] == record["student"]["inherited"]
    written = sum(path.stat().st_size for path in (home / "run").rglob("*") if path.suffix in (".safetensors", ".pt"))
    assert 0.5 < written / record["writes"][0]["bytes"] < 1.5


def test_more_images_a_step_take_more_memory_in_proportion(home):
    small, large = (
        json.loads(rehearsed(home, "--json", "--quiet", "--batch-size", str(size)).stdout)["memory"]["step"]
        for size in (8, 80)
    )
    assert 8 < large / small < 12


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--pool", "nowhere"], "nowhere"),
        (["--student", "kd3:vit"], "vit"),
        (["--batch-size", "15", "--devices", "2"], "cannot be divided among 2 processes"),
        (["--init", "inherit", "--student", "kd3:vgg8"], "cannot inherit"),
        (["--out", "teacher/teacher.yaml/run"], "is no folder"),
        (["--deployment", "teacher"], "teacher"),
        (["--epochs", "0.1"], "less than one batch"),
    ],
)
def test_what_would_end_the_run_ends_the_dry_run(home, words, part):
    before = all_below(home)
    if "--epochs" in words:
        names = ["--teacher", "teacher/teacher.yaml", "--student", "kd3:resnet8", "--pool", "pool", "--out", "runs/a"]
        done = here("distill", *names, "--dry-run", *words, cwd=home)
    else:
        done = rehearsed(home, *words)
    assert done.returncode == 2, done.stdout
    assert part in done.stderr.splitlines()[-1]
    assert all_below(home) == before


@pytest.mark.parametrize("student", ["kd3:resnet21", "resnet21", "kd3:nothing", "vgg:16"])
def test_a_student_that_nobody_knows_is_refused_before_anything_slow(home, student):
    (home / "teacher" / "weights.pt").unlink()  # loading the teacher would fail first
    done = rehearsed(home, "--student", student)
    assert done.returncode == 2
    (sentence,) = done.stderr.splitlines()
    assert student.rpartition(":")[2] in sentence
    assert "weights" not in sentence


def test_an_interrupted_run_is_rehearsed_from_where_it_stands(home):
    assert here(*first_run(home), cwd=home).returncode == 0
    (home / "runs" / "a" / "summary.json").unlink()
    before = all_below(home)
    done = here("distill", "--resume", "--out", "runs/a", "--dry-run", cwd=home)
    assert "10 of 16 images, 10 of them done" in done.stdout, done.stderr
    assert all_below(home) == before
    (home / "pool").rename(home / "other")
    assert here("distill", "--resume", "--out", "runs/a", "--dry-run", cwd=home).returncode == 2


def first_run(home):
    names = ["--teacher", "teacher/teacher.yaml", "--student", "kd3:resnet8", "--pool", "pool", "--out", "runs/a"]
    return ["distill", *names, *FEW, "--method", "kd", "--track", "none"]


def test_a_finished_run_has_nothing_to_rehearse(home):
    assert here(*first_run(home), cwd=home).returncode == 0
    done = here("distill", "--resume", "--out", "runs/a", "--dry-run", cwd=home)
    assert (done.returncode, done.stdout) == (2, "")
    assert "nothing to resume" in done.stderr


def test_a_live_student_keeps_its_weights_and_statistics(home):
    from kd3.models.arch import build_arch

    student = build_arch("kd3:resnet8", num_classes=3)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    kd3.distill(home / "teacher" / "teacher.yaml", student, home / "pool", home / "run", dry_run=True, holdout=12)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert not (home / "run").exists()
