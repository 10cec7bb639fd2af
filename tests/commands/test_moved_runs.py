"""Runs from another working directory, moved with their inputs or without."""

import json
import shutil

import pytest
import yaml

import kd3
from in_process import here
from kd3.runtime.run_folder import find

FEW = ["--images", "32", "--batch-size", "16", "--holdout", "12", "--precision", "32", "--device", "cpu"]
FEW += ["--method", "kd", "--track", "none"]


@pytest.fixture
def home(tmp_path, teacher_file, pool_folder, labelled):
    """A project folder with teacher, pool and test images, and a run made there by relative paths."""
    place = tmp_path / "first home"
    shutil.copytree(teacher_file.parent, place / "teacher")
    shutil.copytree(pool_folder, place / "pool")
    shutil.copytree(labelled, place / "test")
    words = ["--teacher", "teacher/teacher.yaml", "--student", "kd3:resnet8", "--pool", "pool", "--out", "runs/a"]
    done = here("distill", *words, "--eval-data", "test", *FEW, cwd=place)
    assert done.returncode == 0, done.stderr
    return place


def unfinished(run):
    (run / "summary.json").unlink()
    return run


def works(run, cwd):
    """Report, resume, and a new run from the run's own settings, from that folder."""
    done = here("report", run, "--images", "0", "--no-latency", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "Not shown" not in (run / "report.html").read_text()
    evaluated = here("evaluate", run, "--data", run.parents[1] / "test", "--workers", "0", cwd=cwd)
    assert "in the student's pool" in evaluated.stdout, evaluated.stderr
    again = here("distill", "--config", run / "config.yaml", "--out", run.parent / "b", cwd=cwd)
    assert again.returncode == 0, again.stderr
    resumed = here("distill", "--resume", "--out", unfinished(run), cwd=cwd)
    assert resumed.returncode == 0, resumed.stderr


def test_a_run_works_from_another_working_directory(home, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    works(home / "runs" / "a", tmp_path / "elsewhere")


def test_a_run_moved_with_its_pool_and_teacher_works(home, tmp_path):
    moved = tmp_path / "second"
    home.rename(moved)
    works(moved / "runs" / "a", tmp_path)


def test_a_run_moved_alone_says_where_it_looked_and_takes_a_new_place(home, tmp_path):
    run = unfinished((home / "runs" / "a").rename(tmp_path / "alone"))
    done = here("distill", "--resume", "--out", run, cwd=tmp_path)
    assert done.returncode == 2
    sentence = done.stderr.strip().splitlines()[-1]
    assert "the teacher of the run" in sentence
    assert str(tmp_path / "teacher" / "teacher.yaml") in sentence
    assert "--teacher" in sentence
    places = ["--teacher", home / "teacher" / "teacher.yaml", "--pool", home / "pool", "--eval-data", home / "test"]
    done = here("distill", "--resume", "--out", run, *places, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("command", "missing"), [("adapt", "pool"), ("cascade", "pool"), ("cascade", "teacher")])
def test_a_lost_place_is_asked_for_once(command, missing, home, tmp_path):
    (home / missing).rename(tmp_path / "hidden")
    done = here(command, home / "runs" / "a")
    assert done.returncode == 2
    assert done.stderr.count(f"--{missing}") == 1
    assert f"the {missing} of the run {home}/runs/a is neither at {home}/{missing}" in done.stderr


def test_another_pool_at_the_place_is_not_taken_for_the_runs(home, crawl, tmp_path):
    shutil.rmtree(home / "pool")
    kd3.ingest(crawl, home / "pool", image_size=16, limit=60, workers=0, quiet=True)
    done = here("distill", "--resume", "--out", unfinished(home / "runs" / "a"), cwd=tmp_path)
    assert done.returncode == 2
    assert "the pool is not what the run" in done.stderr


def test_no_path_of_this_machine_is_written_for_paths_given_relatively(home):
    for name in ("config.yaml", "origin.json"):
        assert str(home) not in (home / "runs" / "a" / name).read_text()
    settings = yaml.safe_load((home / "runs" / "a" / "config.yaml").read_text())
    assert settings["pool"] == "pool"


def test_what_is_no_path_is_left_as_it_is(home):
    assert find(home / "runs" / "a", "student", "kd3:resnet8") == "kd3:resnet8"


def test_a_place_that_is_looked_at_twice_is_told_once(tmp_path, monkeypatch):
    for folder in ("run", "elsewhere"):
        (tmp_path / folder).mkdir()
    (tmp_path / "run" / "origin.json").write_text(json.dumps({"places": {"pool": "../pool"}}))
    for folder, words in (
        (".", "is not at {0}/pool;"),
        ("elsewhere", "is neither at {0}/pool nor at {0}/elsewhere/pool;"),
    ):
        monkeypatch.chdir(tmp_path / folder)
        with pytest.raises(kd3.KD3Error) as problem:
            find(tmp_path / "run", "pool", "pool")
        assert words.format(tmp_path) in str(problem.value)
