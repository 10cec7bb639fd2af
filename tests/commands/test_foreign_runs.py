"""Folders of runs and students that somebody else made: nothing in them leads elsewhere, and what is odd is refused."""

import base64
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file, save_file

import kd3
from in_process import here
from kd3.inheritance.adapt import Adaptation
from kd3.inheritance.at_end import keep_adapted
from kd3.models.student_files import ADAPTATION
from kd3.reports.run_records import read_run
from kd3.runtime import run_folder
from kd3.runtime.run_folder import RunFolder
from kd3.training.run_logger import last_selection

SECRET = "a key of the reader's own"


@pytest.fixture(scope="module")
def made(teacher_file, pool_folder, tmp_path_factory):
    """A finished run with a recalled student."""
    out = tmp_path_factory.mktemp("runs") / "run"
    small = {"images": 96, "batch_size": 16, "holdout": 20, "device": "cpu", "track": "none", "recall": 16}
    kd3.distill(teacher_file, "kd3:resnet8", pool_folder, out, **small)
    return out


@pytest.fixture
def run(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def home(tmp_path):
    """Files of the reader's own."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "key").write_text(SECRET)
    return tmp_path / "home"


def refused(*words):
    done = here(*words)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()[-1]) < 1000
    return done.stderr


def changed(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


ODD = {
    "no number": ("summary.json", {"agreement": "high"}, "agreement"),
    "more than all": ("summary.json", {"agreement": 100.5}, "agreement"),
    "nothing": ("summary.json", {"steps": None}, "steps"),
    "without end": ("summary.json", {"seconds": float("inf")}, "seconds"),
    "no text": ("summary.json", {"student": ["a"]}, "student"),
    "fewer than no images": ("summary.json", {"accuracy_images": -1}, "accuracy_images"),
    "a machine of another kind": ("origin.json", {"machine": 7}, "machine"),
    "packages of another kind": ("origin.json", {"packages": ["torch"]}, "packages"),
    "a share of all and more": ("adaptation.json", {"share": 3}, "share"),
    "half of a pair": ("adaptation.json", {"accuracy_before": 50.0}, "accuracy_before and accuracy_after"),
    "no divergence as trained": ("adaptation.json", {"divergence_by_share": {"0.4": 1.0}}, "divergence_by_share"),
    "a kind that is not known": ("adaptation.json", {"kind": "dreamt"}, "kind"),
    "told to people": ("student/config.json", {"about": {"agreement": "x"}}, "about.agreement"),
    "no names": ("student/config.json", {"about": []}, "about"),
    "a scale without end": ("student/config.json", {"std": [1e-300] * 3}, "scale of RGB"),
}


@pytest.mark.parametrize("what", ODD)
def test_records_of_other_types_or_ranges_are_refused(what, run):
    name, values, words = ODD[what]
    read_run(run)
    changed(run / name, **values)
    with pytest.raises(kd3.KD3Error) as problem:
        read_run(run)
    assert str(problem.value).startswith(f"the run {run} is damaged: ")
    assert words in str(problem.value)
    assert name in str(problem.value)


@pytest.mark.parametrize("name", ["summary.json", "origin.json", "adaptation.json", "student/config.json"])
@pytest.mark.parametrize("text", ["[]", "3", '"x"', "[" * 50_000, "{", "\udcff"])
def test_other_json_is_refused(name, text, run):
    (run / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(kd3.KD3Error, match="is damaged: "):
        read_run(run)


PLACE = {"step": 1, "images": 16, "seconds": 0.5}


@pytest.mark.parametrize(
    "event",
    [
        "7",
        "{}",
        "[" * 50_000,
        {"event": ["train"], "words": ""},
        {"event": "other", "depth": [[1]]},
        {"event": "other", "depth": [{}]},
        {"event": "other", "depth": {"a": 1}},
        b"\xff\xfe",
        {"event": "warning"},
        {"event": "evaluation", **PLACE},
        {"event": "evaluation", **PLACE, "agreement": True},
        {"event": "train", **PLACE, "loss": 1.0, "lr": "fast", "images_per_second": 3.0},
        {"event": "train", **PLACE, "loss": 1.0, "lr": 0.1, "images_per_second": 3.0, "soft_targets": ["x"]},
        {"event": "selection", **PLACE, "kept": 0, "of": 0},
        {"event": "selection", **PLACE, "kept": 2, "of": 3, "kept_per_class": [1, 1]},
        {"event": "selection", **PLACE, "kept": 2, "of": 3, "thresholds": [0.5, None, 0.5]},
    ],
)
def test_events_of_other_types_are_refused(event, run):
    line = event if isinstance(event, (str, bytes)) else json.dumps(event)
    with (run / "metrics.jsonl").open("ab") as handle:
        handle.write((line.encode() if isinstance(line, str) else line) + b"\n")
    with pytest.raises(kd3.KD3Error, match=r"is damaged: .*metrics\.jsonl"):
        read_run(run)


def test_a_history_without_end_is_refused_before_it_is_read(run, monkeypatch):
    history = run / "metrics.jsonl"
    length = history.stat().st_size
    monkeypatch.setattr(run_folder, "LARGEST_HISTORY", length)
    read_run(run)
    os.truncate(history, length + 1)  # a hole: no bytes on the disk, and gigabytes cost no more
    with pytest.raises(kd3.KD3Error, match=r"metrics\.jsonl cannot be read: it has more than 0 MiB"):
        read_run(run)
    os.truncate(history, length)
    longest = max(map(len, history.read_bytes().splitlines(keepends=True)))
    monkeypatch.setattr(run_folder, "LARGEST", longest)
    read_run(run)
    with history.open("ab") as handle:
        handle.write(b" " * (longest + 1))
    monkeypatch.setattr(run_folder, "LARGEST_HISTORY", 10 * length)
    with pytest.raises(kd3.KD3Error, match=r"metrics\.jsonl cannot be read: line \d+ has more than 0 MiB"):
        read_run(run)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes pipes")
@pytest.mark.parametrize("name", ["metrics.jsonl", "origin.json", "summary.json", "selections/00099.npy"])
def test_pipes_are_not_waited_for(name, run, teacher_file, pool_folder):
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    words = {"selections/00099.npy": ("adapt", run, "--teacher", teacher_file, "--pool", pool_folder, "--count", 16)}
    said = refused(*words.get(name, ("report", run)))
    assert Path(name).name in said or "is not finished" in said


POSITIONS = {
    "objects": lambda handle: np.save(handle, np.array([{}], dtype=object), allow_pickle=True),
    "no whole numbers": lambda handle: np.save(handle, np.array([0.5])),
    "other images": lambda handle: np.save(handle, np.array([120])),
    "before the first": lambda handle: np.save(handle, np.array([-1])),
    "a table": lambda handle: np.save(handle, np.zeros((2, 2), np.int64)),
    "text": lambda handle: handle.write(b"x"),
    "more than there is": lambda handle: np.lib.format.write_array_header_1_0(
        handle, {"descr": "<i8", "fortran_order": False, "shape": (10**12,)}
    ),
}


@pytest.mark.parametrize("kind", POSITIONS)
def test_selections_that_are_no_positions_in_the_pool_are_refused(kind, run, pool_folder):
    with (run / "selections" / "00099.npy").open("wb") as handle:
        POSITIONS[kind](handle)
    with pytest.raises(kd3.KD3Error, match=r"00099\.npy (is damaged|cannot be read)"):
        last_selection(RunFolder(run), images=120)


SETTINGS = [{"train": 3}, {"train": {"holdout": "many"}}, {"train": {"share": float("nan")}}, {"pool": ["a"]}]


@pytest.mark.parametrize("values", SETTINGS)
def test_settings_by_which_images_are_found_are_checked(values, run, teacher_file, pool_folder):
    config = run / "config.yaml"
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), **values}))
    for words in (("export", run, "--out", run / "out"), ("cascade", run, "--teacher", teacher_file)):
        assert "config.yaml" in refused(*words)
    with pytest.raises(kd3.KD3Error, match=r"config\.yaml"):
        read_run(run)


@pytest.mark.parametrize("record", ["[]", "{}", '{"share": "x"}', "[" * 50_000])
def test_an_odd_record_in_the_weights_is_refused_by_all_that_read_it(record, run, teacher_file, pool_folder):
    weights = run / "student" / "model.safetensors"
    save_file(load_file(weights), weights, metadata={ADAPTATION: record})
    noise = ("--images", "none", "--check-images", 4, "--format", "safetensors")
    assert "model.safetensors" in refused("export", run, "--out", run / "out", *noise)
    assert not (run / "out").exists()
    assert "model.safetensors" in refused("adapt", run, "--teacher", teacher_file, "--pool", pool_folder)


def test_places_of_other_types_are_no_places(run, labelled):
    changed(run / "origin.json", places={"pool": 3, "teacher": ["x"]})
    done = here("evaluate", run, "--data", labelled, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    (run / "origin.json").write_text("[]")
    done = here("evaluate", run, "--data", labelled, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "it is unknown whether the student trained on these images" in done.stderr


def test_a_report_shows_no_picture_that_is_a_link(run, home, teacher_file, pool_folder):
    words = ("report", run, "--images", 0, "--latency", "false", "--teacher", teacher_file, "--pool", pool_folder)
    own = base64.b64encode((run / "recalled.png").read_bytes()).decode()
    assert here(*words).returncode == 0
    assert own in (run / "report.html").read_text()
    (run / "recalled.png").unlink()
    (run / "recalled.png").symlink_to(home / "key")
    assert here(*words).returncode == 0
    page = (run / "report.html").read_text()
    assert base64.b64encode(SECRET.encode()).decode()[:20] not in page
    assert "Recalled images" in page


def test_an_export_ships_the_students_own_files_alone(run, home, tmp_path):
    (run / "student" / "more").symlink_to(home)
    (run / "student" / "notes.txt").write_text("of somebody else")
    flags = ("--format", "safetensors", "--images", "none", "--check-images", 4)
    assert here("export", run, "--out", tmp_path / "ship", *flags).returncode == 0
    assert {path.name for path in (tmp_path / "ship" / "student").iterdir()} == {"config.json", "model.safetensors"}


def test_what_is_kept_as_trained_holds_the_students_own_files_alone(run, home):
    shutil.rmtree(run / "student-as-trained", ignore_errors=True)
    save_file(load_file(run / "student" / "model.safetensors"), run / "student" / "model.safetensors")  # no record
    (run / "student" / "more").symlink_to(home)
    (run / ".student-as-trained.unfinished").symlink_to(home)  # which is cleared before it is written to
    record = {**json.loads((run / "adaptation.json").read_text()), "share": 0.4}
    keep_adapted(RunFolder(run), kd3.load_student(run), Adaptation(**record), None)
    assert {path.name: path.read_text() for path in home.iterdir()} == {"key": SECRET}
    found = {path.name for path in (run / "student-as-trained").iterdir()}
    assert found == {"config.json", "model.safetensors"}


def led_away(run, name, home):
    """Move a file or folder of a run to the reader's own and leave a link; return what it holds."""
    (run / name).rename(home / "own")
    (run / name).symlink_to(home / "own")
    return contents(home)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


OF_STUDENT = ["student", "student/config.json", "student/model.safetensors"]
OF_RUN = ["summary.json", "config.yaml", "origin.json", "metrics.jsonl", "selections", "checkpoints"]


@pytest.mark.parametrize("name", [*OF_STUDENT, *OF_RUN])
def test_every_command_that_takes_a_run_refuses_files_of_it_that_are_links(name, run, home, teacher_file, pool_folder):
    before = led_away(run, name, home)
    inputs = ("--teacher", teacher_file, "--pool", pool_folder)
    noise = ("--images", "none", "--check-images", 4, "--format", "safetensors")
    for words in (
        ("classes", run, "--names", "a,b,c"),
        ("cascade", run, *inputs, "--device", "cpu"),
        ("adapt", run, *inputs, "--count", 16),
        ("report", run, "--images", 0, "--latency", "false"),
        ("export", run, "--out", run / "out", *noise),
        ("distill", "--resume", "--out", run),
    ):
        if words[0] == "distill" and name in OF_STUDENT[1:]:
            continue  # the run is finished: its student is not opened
        assert f"{run / name} is a link" in refused(*words), words
    assert contents(home) == before
    assert not (run / "out").exists()


@pytest.mark.parametrize("name", OF_STUDENT)
def test_every_command_that_takes_a_student_refuses_files_of_it_that_are_links(name, run, home, labelled):
    before = led_away(run, name, home)
    for words in (
        ("classes", run / "student"),
        ("classes", run / "student", "--names", "a,b,c"),
        ("predict", run, labelled),
        ("evaluate", run / "student", "--data", labelled),
    ):
        assert f"{run / name} is a link" in refused(*words), words
    assert contents(home) == before


def test_a_students_code_that_is_a_link_is_neither_run_nor_copied(run, home, tmp_path):
    changed(run / "student" / "config.json", arch="key.py:build")
    (run / "student" / "key.py").symlink_to(home / "key")
    for words in (("classes", run), ("export", run, "--out", tmp_path / "ship", "--trust-code")):
        assert "key.py is a link" in refused(*words)


def test_a_link_that_the_user_names_is_followed(run, tmp_path, labelled):
    (tmp_path / "latest").symlink_to(run)
    (tmp_path / "shipped").symlink_to(run / "student")
    for model in (tmp_path / "latest", tmp_path / "shipped"):
        assert here("evaluate", model, "--data", labelled, "--device", "cpu").returncode == 0
    assert here("classes", tmp_path / "shipped", "--names", "a,b,c").returncode == 0
    assert kd3.load_student(run).classes == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "student", "selections", "tensorboard", ".lock"])
def test_a_run_that_is_gone_on_with_is_not_written_through_links(name, run, home):
    (run / "summary.json").unlink()  # as if interrupted
    if not (run / name).exists():
        (run / name).mkdir()
    before = led_away(run, name, home)
    assert f"{run / name} is a link" in refused("distill", "--resume", "--out", run)
    assert contents(home) == before


def test_no_temporary_name_that_is_a_link_is_written_to(run, home):
    number = os.getpid()
    for path in (run / f".report.html.{number}.tmp", run / "student" / f".config.json.{number}.tmp"):
        path.symlink_to(home / "key")
    assert here("report", run, "--images", 0, "--latency", "false").returncode == 0
    assert here("classes", run, "--names", "a,b,c").returncode == 0
    assert (home / "key").read_text() == SECRET
    assert not (run / "report.html").is_symlink()
    assert kd3.load_student(run).classes == ["a", "b", "c"]


def test_a_lock_that_is_a_link_is_refused(run, home, teacher_file, crawl):
    (run / ".lock").unlink(missing_ok=True)
    (run / ".lock").symlink_to(home / "key")
    said = refused("adapt", run, "--teacher", teacher_file, "--images", crawl, "--count", 40, "--device", "cpu")
    assert f"{run / '.lock'} is a link" in said
    assert (home / "key").read_text() == SECRET
