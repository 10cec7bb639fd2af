"""Old names of settings: read, with a note, until the version that CONTRIBUTING's policy allows."""

import json
from pathlib import Path

import pytest
import yaml

import kd3
from in_process import here
from kd3.config.settings import RENAMED, build, merge
from kd3.config.training import TrainSettings
from kd3.runtime.errors import KD3Error
from kd3.studies.known_runs import KnownRuns


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_an_old_name_is_read_as_the_present_one(old, new):
    assert build(TrainSettings, {old: 7}, where="a file") == build(TrainSettings, {new: 7}, where="a file")


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_both_names_at_once_are_refused(old, new):
    with pytest.raises(KD3Error, match=f"{old} is the old name of {new}"):
        build(TrainSettings, {old: 7, new: 7}, where="a file")


def test_the_old_flag_works_and_is_not_in_the_help(teacher_file, pool_folder, tmp_path):
    words = ["--teacher", teacher_file, "--student", "kd3:resnet8", "--pool", pool_folder, "--out", "runs/a"]
    words += ["--images", 64, "--batch-size", 16, "--holdout", 12, "--dry-run", "--json"]
    found = [
        json.loads(here("distill", *words, flag, 3, cwd=tmp_path).stdout)["settings"]["train"]
        for flag in ("--looks", "--evals")
    ]
    assert found[0] == found[1]
    assert found[0]["evals"] == 3
    assert "--looks" not in here("distill", "--help", "all", cwd=tmp_path).stdout


def test_a_file_of_settings_may_have_the_old_name(teacher_file, pool_folder, tmp_path):
    values = {"teacher": str(teacher_file), "student": "kd3:resnet8", "pool": str(pool_folder), "out": "runs/a"}
    values["train"] = {"images": 64, "batch_size": 16, "holdout": 12, "looks": 2}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    done = here("distill", "--config", "run.yaml", "--dry-run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["settings"]["train"]["evals"] == 2


def test_results_of_an_earlier_version_have_the_present_names():
    known = Path(__file__).parents[2] / "docs" / "results" / "random-start" / "table1.json"
    assert '"looks"' in known.read_text()
    found = KnownRuns([str(known)]).all()
    assert len(found) > 5
    for result in found:
        assert result.run["train"]["evals"] == 10
        assert not RENAMED.keys() & result.run["train"].keys()


def test_a_present_name_overrules_the_old_one_of_a_layer_below(teacher_file, pool_folder, tmp_path):
    values = {"teacher": str(teacher_file), "student": "kd3:resnet8", "pool": str(pool_folder), "out": "runs/a"}
    values["train"] = {"images": 64, "batch_size": 16, "holdout": 12, "looks": 2}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    for flag in ("--evals", "--looks"):
        done = here("distill", "--config", "run.yaml", flag, 5, "--dry-run", "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["settings"]["train"]["evals"] == 5
    assert merge({"train": {"looks": 1}}, {"train": {"evals": 2}}) == {"train": {"evals": 2}}
    assert merge({"train": {"evals": 1}}, {"train": {"looks": 2}}) == {"train": {"evals": 2}}


@pytest.mark.parametrize("words", [["--looks", 2, "--evals", 3], ["--evals", 3, "--looks", 2]])
def test_both_flags_at_once_are_refused(words, teacher_file, pool_folder, tmp_path):
    names = ["--teacher", teacher_file, "--student", "kd3:resnet8", "--pool", pool_folder, "--out", "runs/a"]
    done = here("distill", *names, *words, "--dry-run", cwd=tmp_path)
    assert done.returncode == 2
    assert "looks is the old name of evals; give one of them" in done.stderr
    with pytest.raises(KD3Error, match="old name"):
        kd3.distill(teacher_file, "kd3:resnet8", pool_folder, tmp_path / "r", looks=2, evals=3)


def test_a_misspelt_flag_is_answered_with_a_present_name(tmp_path):
    done = here("distill", "--look", 3, cwd=tmp_path)
    assert done.returncode == 2
    assert "--looks" not in done.stderr
