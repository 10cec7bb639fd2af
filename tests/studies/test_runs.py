"""Runs of a study, each in a process of its own: here a stand-in for `kd3 distill` that only writes its folder."""

import json
import subprocess
import sys
import time

import pytest
import yaml

from kd3.config.distill import DistillConfig
from kd3.config.settings import build, to_yaml
from kd3.runtime.errors import KD3Error
from kd3.studies import runs
from kd3.studies.plan import Cell
from kd3.studies.runs import StudyFolder, check_finished, pending, run_all

STAND_IN = """
import json, os, pathlib, sys, time
arguments = sys.argv[1:]
out = pathlib.Path(arguments[arguments.index("--out") + 1])
with open(out.parent.parent / "calls.txt", "a") as calls:
    calls.write(json.dumps({"run": out.name, "resume": "--resume" in arguments, "start": time.time()}) + "\\n")
if "bad" in out.name:
    print("kd3: this one cannot work", file=sys.stderr)
    sys.exit(2)
out.mkdir(parents=True, exist_ok=True)
if "--config" in arguments:
    (out / "config.yaml").write_text(pathlib.Path(arguments[arguments.index("--config") + 1]).read_text())
time.sleep(0.4)
if "stopped" in out.name and "--resume" not in arguments:
    sys.exit(130)
(out / "summary.json").write_text("{}")
"""


def cell(name, seed=0):
    return Cell(name, seed, "crawl", {})


def settings(**more):
    values = {"teacher": "t.yaml", "student": "kd3:resnet8", "pool": "p", "seed": 0, "train": {"images": 64}}
    return {**values, "device": "auto", **more}


@pytest.fixture
def layout(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    real = subprocess.Popen

    def start(command, log, environment):
        return real([sys.executable, str(script), *command[3:]], stdout=log, stderr=log, env=dict(environment))

    monkeypatch.setattr(runs, "_start", start)
    return StudyFolder(tmp_path)


def calls(layout):
    path = layout.path / "calls.txt"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def take(layout, cells, **options):
    finished = []
    values = {"devices": ["auto"], "jobs": 1, "finished": finished.append, **options}
    failures = run_all(layout, list(pending(layout, [(c, settings(seed=c.seed)) for c in cells])), **values)
    return [c.name for c in finished], failures


def test_finished_runs_are_never_repeated(layout):
    cells = [cell("a"), cell("b")]
    assert take(layout, cells) == (["a-seed0", "b-seed0"], [])
    assert take(layout, [*cells, cell("a", 1)]) == (["a-seed1"], [])
    assert [call["run"] for call in calls(layout)] == ["a-seed0", "b-seed0", "a-seed1"]


def test_a_failed_run_costs_itself_alone(layout):
    finished, failures = take(layout, [cell("bad one"), cell("a")])
    assert finished == ["a-seed0"]
    assert [failure.cell.row for failure in failures] == ["bad one"]
    assert "this one cannot work" in failures[0].why
    assert "status 2" in failures[0].why


def test_an_interrupted_run_stops_the_study_and_is_resumed_the_next_time(layout):
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        take(layout, [cell("stopped"), cell("a")])
    assert take(layout, [cell("stopped"), cell("a")]) == (["stopped-seed0", "a-seed0"], [])
    assert [(call["run"], call["resume"]) for call in calls(layout)] == [
        ("stopped-seed0", False), ("stopped-seed0", True), ("a-seed0", False)
    ]  # fmt: skip


def test_several_run_at_a_time_on_devices_that_take_turns(layout):
    cells = [cell(name) for name in "abcd"]
    start = time.monotonic()
    finished, _ = take(layout, cells, devices=["cpu", "cuda:1"], jobs=4)
    assert sorted(finished) == [f"{name}-seed0" for name in "abcd"]
    starts = [call["start"] for call in calls(layout)]
    assert max(starts) - min(starts) < 0.4 * 3  # one after the other would be at least that
    devices = [yaml.safe_load(layout.config(c).read_text())["device"] for c in cells]
    assert devices == ["cpu", "cuda:1", "cpu", "cuda:1"]
    assert time.monotonic() - start < 30


def test_a_study_that_changed_does_not_pass_off_old_runs_as_new_ones(layout):
    take(layout, [cell("a")])
    with pytest.raises(KD3Error, match=r"a-seed0 was run with train.images 64, and row 'a' of the study wants 128"):
        check_finished(layout, cell("a"), settings(train={"images": 128}))


def test_the_device_that_auto_meant_is_no_difference(layout):
    take(layout, [cell("a")])
    folder = layout.run(cell("a"))
    resolved = build(DistillConfig, {**settings(), "out": str(folder), "device": "cpu"}, where="test")
    (folder / "config.yaml").write_text(to_yaml(resolved))
    assert check_finished(layout, cell("a"), settings())
    with pytest.raises(KD3Error, match="device"):
        check_finished(layout, cell("a"), settings(device="cuda:0"))
