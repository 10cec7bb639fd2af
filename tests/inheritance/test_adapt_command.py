"""`kd3 adapt` and recall at the end of `kd3 distill`: results, refusals, and state after a kill."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import kd3
from in_process import here
from kd3.models.student_files import adaptation_of

BUDGET = ("--images", 64, "--batch-size", 32, "--evals", 1, "--holdout", 12, "--track", "none")


def distil(teacher, pool, out, *words, student="kd3:resnet8"):
    return here("distill", "--teacher", teacher, "--student", student, "--pool", pool, "--out", out, *BUDGET, *words)


@pytest.fixture(scope="module")
def plain_run(teacher_file, pool_folder, tmp_path_factory):
    """A run without recall."""
    out = tmp_path_factory.mktemp("plain") / "run"
    done = distil(teacher_file, pool_folder, out, "--recall", "off")
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture
def run(plain_run, tmp_path):
    """A copy of it to change."""
    shutil.copytree(plain_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def whole_share(monkeypatch):
    """Take all of the new statistics: these networks are untrained, and their agreement is meaningless."""
    monkeypatch.setattr("kd3.inheritance.adapt.Judged.choose", lambda self: 1.0)


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def contents(folder):
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_run_without_recall_has_none(plain_run):
    assert "recall" not in json.loads((plain_run / "summary.json").read_text())
    assert adaptation_of(plain_run / "student") is None


def test_a_finished_run_gets_a_student_with_recalled_statistics(run, whole_share):
    before = weights(run / "student")
    done = here("adapt", run, "--count", 40, "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["kind"], record["images"], record["share"]) == ("recalled", 40, 1.0)
    assert record["gap_after"] < record["gap_before"]
    assert len(record["positions"]) == len(record["keys"]) == 40
    after, files = weights(run / "student"), contents(run / "student")
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed
    assert all(name.endswith(("running_mean", "running_var")) for name in changed)
    assert same(weights(run / "student-as-trained"), before)
    record = json.loads((run / "adaptation.json").read_text())
    assert adaptation_of(run / "student") == record == json.loads((run / "summary.json").read_text())["recall"]
    assert here("adapt", run, "--count", 40).returncode == 0
    assert contents(run / "student") == files  # byte for byte
    assert (run / "recalled.png").read_bytes().startswith(b"\x89PNG")
    student = kd3.load_student(run)
    assert same(dict(student.state_dict()), after)


def test_it_starts_from_the_student_as_trained_each_time(run, crawl, whole_share):
    before = weights(run / "student")
    assert here("adapt", run, "--count", 40).returncode == 0
    once = weights(run / "student")
    assert here("adapt", run, "--images", crawl).returncode == 0
    assert not (run / "recalled.png").exists()
    assert not same(weights(run / "student"), once)
    assert here("adapt", run, "--count", 40).returncode == 0
    assert same(weights(run / "student"), once)
    assert same(weights(run / "student-as-trained"), before)


def test_a_share_of_zero_is_the_student_as_trained(run, monkeypatch):
    before = weights(run / "student")
    monkeypatch.setattr("kd3.inheritance.adapt.Judged.choose", lambda self: 1.0)
    assert here("adapt", run, "--count", 20).returncode == 0
    monkeypatch.setattr("kd3.inheritance.adapt.Judged.choose", lambda self: 0.0)
    done = here("adapt", run, "--count", 20)
    assert "stays as trained" in done.stdout
    assert same(weights(run / "student"), before)
    assert not (run / "student-as-trained").exists()


def test_python_does_what_the_command_does(run, crawl, whole_share):
    found = kd3.adapt(run, images=crawl, count=30, seed=2)
    assert found.adaptation.images == 30
    assert found.adaptation.kind == "given"
    assert same(dict(found.student.state_dict()), weights(run / "student"))
    assert found.to_dict()["run"] == str(run)


def test_evaluate_export_and_report_take_the_adapted_student(run, labelled, tmp_path, whole_share):
    assert here("adapt", run, "--count", 40).returncode == 0
    assert here("evaluate", run, "--data", labelled, "--leak-check", "false").returncode == 0
    done = here("export", run, "--out", tmp_path / "out", "--format", "safetensors", "--check-images", 10)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "out" / "README.md").read_text()
    assert "100% of its batch-norm statistics from 40 images recalled from the teacher" in card
    assert same(weights(tmp_path / "out" / "student"), weights(run / "student"))
    assert here("report", run, "--images", 0, "--latency", "false").returncode == 0
    page = (run / "report.html").read_text()
    assert "Recalled images" in page
    assert page.count("data:image/png") >= 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--images", "{tmp}/nothing"], "nothing"),
        (["--images", "{tmp}/few"], "5 usable images"),
        (["--images", "{tmp}/texts"], "0 usable images (left out: 20 "),
        (["--images", "{crawl}", "--keep-out", "{crawl}"], "120 like a test image); at least 16 are needed"),
        (["--count", "3"], "greater than or equal to 16"),
        (["--pool", "{tmp}/gone"], "gone"),
        (["--teacher", "{other}"], "--teacher is not the teacher of the run"),
    ],
)
def test_what_cannot_be_used_is_told_and_nothing_is_written(
    run, crawl, centred_teacher_file, tmp_path, words, sentence
):
    for name, count in (("few", 5), ("texts", 0)):
        (tmp_path / name).mkdir()
        for path in sorted(crawl.glob("*.png"))[:count]:
            shutil.copy(path, tmp_path / name)
    for number in range(20):
        (tmp_path / "texts" / f"{number}.jpg").write_text("no picture")
    before = contents(run)
    places = {"tmp": tmp_path, "crawl": crawl, "other": centred_teacher_file}
    done = here("adapt", run, *(word.format(**places) for word in words), "--workers", 0)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert contents(run) == before


def test_an_unfinished_run_is_refused(run, tmp_path):
    (run / "summary.json").unlink()
    assert "is not finished; finish it with: kd3 distill --resume" in here("adapt", run).stderr
    assert "is no run folder" in here("adapt", tmp_path / "nowhere").stderr


NETWORKS = """
from torch import nn


def plain(num_classes):
    pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *pooled, nn.Linear(8, num_classes))
"""


@pytest.fixture(scope="module")
def plain_network(tmp_path_factory):
    path = tmp_path_factory.mktemp("code") / "networks.py"
    path.write_text(NETWORKS)
    return f"{path}:plain"


def test_a_student_without_batch_norms_has_nothing_to_adapt(plain_network, teacher_file, pool_folder, tmp_path):
    done = distil(
        teacher_file, pool_folder, tmp_path / "run", "--method", "kd", "--recall", "auto", student=plain_network
    )
    assert done.returncode == 0, done.stderr
    assert "no recall: the student keeps no batch-norm statistics" in done.stderr
    refused = here("adapt", tmp_path / "run", "--trust-code")
    assert refused.returncode == 2
    assert "there is nothing to adapt" in refused.stderr
    words = ("--method", "kd", "--recall", 32)
    asked = distil(teacher_file, pool_folder, tmp_path / "other", *words, student=plain_network)
    assert asked.returncode == 2
    assert not (tmp_path / "other").exists()


def test_a_teacher_without_batch_norms_needs_images(plain_network, pool_folder, crawl, tmp_path):
    from kd3.models.arch import build_arch

    torch.manual_seed(0)
    network = build_arch(plain_network, num_classes=3)
    network[-1].weight.data *= 20
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    described = {"arch": plain_network, "weights": "weights.pt", "num_classes": 3, "input_size": 16}
    described |= {"mean": [0.5] * 3, "std": [0.25] * 3}
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(described))
    done = distil(tmp_path / "teacher.yaml", pool_folder, tmp_path / "run", "--method", "kd", "--recall", "auto")
    assert done.returncode == 0, done.stderr
    assert "nothing to recall images from" in done.stderr
    refused = here("adapt", tmp_path / "run", "--trust-code")
    assert refused.returncode == 2
    assert "--images" in refused.stderr
    assert here("adapt", tmp_path / "run", "--images", crawl, "--workers", 0, "--trust-code").returncode == 0


def test_distill_recalls_by_itself_and_tells_of_it(
    teacher_file, pool_folder, labelled, plain_run, tmp_path, whole_share
):
    out = tmp_path / "run"
    done = distil(teacher_file, pool_folder, out, "--recall", 40, "--eval-data", labelled, "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)["recall"]
    assert record["images"] == 40
    assert record["accuracy_before"] is not None
    assert record["accuracy_after"] is not None
    assert same(weights(out / "student-as-trained"), weights(plain_run / "student"))
    adapted = weights(plain_run / "student")
    shutil.copytree(plain_run, tmp_path / "later")
    assert here("adapt", tmp_path / "later", "--count", 40).returncode == 0
    assert not same(weights(out / "student"), adapted)
    assert same(weights(out / "student"), weights(tmp_path / "later" / "student"))


def test_distill_takes_images_of_the_deployment(teacher_file, pool_folder, crawl, tmp_path, whole_share):
    done = distil(teacher_file, pool_folder, tmp_path / "run", "--deployment", crawl)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "adaptation.json").read_text())
    assert (record["kind"], record["images"], record["where"]) == ("given", 120, str(crawl))
    refused = distil(teacher_file, pool_folder, tmp_path / "none", "--deployment", tmp_path / "absent")
    assert refused.returncode == 2
    assert not (tmp_path / "none").exists()
    assert (
        distil(teacher_file, pool_folder, tmp_path / "none", "--deployment", crawl, "--recall", "off").returncode == 2
    )


def test_a_damaged_pool_leaves_the_run_as_it_was(run, pool_folder, tmp_path):
    damaged = shutil.copytree(pool_folder, tmp_path / "damaged")
    pixels = (damaged / "images-00000.bin").read_bytes()
    (damaged / "images-00000.bin").write_bytes(bytes(len(pixels)))
    before = contents(run)
    done = here("adapt", run, "--pool", damaged)
    assert done.returncode == 2
    assert f"pool {damaged} is damaged: images-00000.bin is not what was written" in done.stderr
    assert contents(run) == before


@pytest.fixture
def test_images(crawl, tmp_path):
    """Twenty of the crawl's pictures, saved again in another form."""
    folder = tmp_path / "test"
    folder.mkdir()
    for number in range(20):
        Image.open(crawl / f"{number:03d}.png").save(folder / f"{number}.bmp")
    return folder


@pytest.mark.parametrize("words", [["--deployment", "{crawl}"], ["--recall", 100]])
def test_distill_counts_statistics_on_no_image_like_one_that_is_kept_out(
    words, teacher_file, pool_folder, crawl, test_images, tmp_path, whole_share
):
    words = [str(word).format(crawl=crawl) for word in words]
    done = distil(teacher_file, pool_folder, tmp_path / "run", *words, "--keep-out", test_images)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "adaptation.json").read_text())
    kept_out = {f"{number:03d}.png" for number in range(20)}
    assert kept_out.isdisjoint(record["keys"])
    assert record["images"] == len(record["keys"]) > 80
    assert "warning: 20 of the pool's 120 images are like one of --keep-out, but the student still" in done.stderr


def test_distill_refuses_a_deployment_of_which_all_is_kept_out(teacher_file, pool_folder, crawl, tmp_path):
    done = distil(teacher_file, pool_folder, tmp_path / "run", "--deployment", crawl, "--keep-out", crawl)
    assert done.returncode == 2
    assert "at least 16 are needed" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_finds_what_is_kept_out_where_it_was_moved_to(
    teacher_file, pool_folder, test_images, tmp_path, monkeypatch, whole_share
):
    home = tmp_path / "home"
    home.mkdir()
    shutil.move(test_images, home / "test")

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("kd3.commands.distill_work.adapt_student", stop)
        done = here("distill", *named(teacher_file, pool_folder), "--recall", 40, "--keep-out", "test", cwd=home)
        assert done.returncode == 130, done.stderr
    moved = home.rename(tmp_path / "moved")
    assert here("distill", "--resume", "--out", moved / "run", cwd=tmp_path).returncode == 0
    record = json.loads((moved / "run" / "adaptation.json").read_text())
    assert {f"{number:03d}.png" for number in range(20)}.isdisjoint(record["keys"])


def named(teacher, pool):
    return ["--teacher", teacher, "--student", "kd3:resnet8", "--pool", pool, "--out", "run", *BUDGET]


def test_a_run_stopped_between_training_and_recall_resumes_to_the_same_student(
    teacher_file, pool_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("kd3.inheritance.adapt.Judged.choose", lambda self: 0.6)
    whole = distil(teacher_file, pool_folder, tmp_path / "whole", "--recall", 40)
    assert whole.returncode == 0, whole.stderr

    def stop(*_, **__):
        raise KeyboardInterrupt

    for place in ("kd3.inheritance.adapt.judge", "kd3.inheritance.at_end.save_adapted"):
        with monkeypatch.context() as patch:
            patch.setattr(place, stop)
            out = tmp_path / place
            done = distil(teacher_file, pool_folder, out, "--recall", 40)
            assert done.returncode == 130
            assert "continue with: kd3 distill --resume" in done.stderr
            assert not (out / "summary.json").exists()
        again = here("distill", "--resume", "--out", out)
        assert again.returncode == 0, again.stderr
        assert same(weights(out / "student"), weights(tmp_path / "whole" / "student"))
        assert same(weights(out / "student-as-trained"), weights(tmp_path / "whole" / "student-as-trained"))


def test_a_killed_adapt_leaves_the_run_as_it_was(run):
    before = weights(run / "student")
    code = (
        "import os, signal, sys\n"
        "import kd3.inheritance.at_end as kept\n"
        "from kd3.cli import main\n"
        "kept.save_adapted = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "kept.Adaptation.changed = True\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    killed = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, "adapt", str(run), "--count", "20"], capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert same(weights(run / "student"), before)
    assert adaptation_of(run / "student") is None
    again = here("adapt", run, "--count", 20)
    assert again.returncode == 0, again.stderr
    assert adaptation_of(run / "student") is not None


@pytest.mark.parametrize("command", ["adapt", "cascade"])
def test_of_two_at_once_one_is_reported(command, run):
    from kd3.runtime.files import exclusive

    with exclusive(run / ".lock", what="the run"):
        done = here(command, run)
    # Neither has an --out to choose.
    assert (done.returncode, done.stderr) == (2, f"kd3: another process is at work on run {run}; wait for it\n")


@pytest.mark.parametrize(
    ("given", "read"), [(None, None), ("auto", "auto"), (False, "off"), ("off", "off"), ("1k", 1000), (16, 16)]
)
def test_recall_is_auto_off_or_a_number(given, read):
    from kd3.config.distill import DistillConfig
    from kd3.config.settings import build, to_yaml

    values = {"teacher": "t", "student": "s", "pool": "p", "out": "o", "recall": given}
    config = build(DistillConfig, values, where="here")
    assert config.recall == read
    assert build(DistillConfig, yaml.safe_load(to_yaml(config)), where="here") == config


@pytest.mark.parametrize("given", ["15", "some", True, -3, "x40"])
def test_anything_else_is_refused_in_a_sentence(given):
    from kd3.config.distill import DistillConfig
    from kd3.config.settings import build

    values = {"teacher": "t", "student": "s", "pool": "p", "out": "o", "recall": given}
    with pytest.raises(kd3.KD3Error, match="must be auto, off, or a number of images that is at least 16"):
        build(DistillConfig, values, where="here")
