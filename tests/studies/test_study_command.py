"""`kd3 study` from start to end on a tiny pool."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from study_calls import ROWS, call, command, write

import kd3
from kd3.models.preprocessing import Normalisation
from kd3.runtime.run_summary import with_adaptation
from kd3.studies.runs import StudyFolder
from kd3.studies.table import read_run


@pytest.fixture(scope="module")
def labelled_pictures(tmp_path_factory):
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("labelled")
    draw = np.random.default_rng(1)
    for name in ("cat", "dog", "ship"):
        (folder / name).mkdir()
        for number in range(4):
            pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def finished(teacher_file, pool_folder, labelled_pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    study = write(folder, changed_tests={"grey": ["greyscale", 1.0]})
    out = folder / "out"
    words = command(teacher_file, pool_folder, study, out, "--eval-data", str(labelled_pictures), "--json")
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return study, out, json.loads(done.stdout)


def test_a_study_leaves_runs_and_tables(finished):
    _, out, shown = finished
    assert [line["row"] for line in shown["table"]] == ["KD3", "KD, half"]
    assert set(shown["table"][0]["measures"]) >= {"accuracy", "agreement", "seconds", "accuracy, grey"}
    assert shown == json.loads((out / "results.json").read_text())
    page = (out / "table.md").read_text()
    assert "| KD3 | 1 |" in page
    assert "2 of 2 runs, 64 training images each" in page
    assert (out / "table.csv").read_text().startswith("row,series,x,pool,seeds,accuracy mean")
    for run in ("kd3-seed0", "kd-half-seed0"):
        assert (out / "runs" / run / "student" / "model.safetensors").is_file()
    pools = list((out / "pools").iterdir())
    assert [len(kd3.ImagePool.open(pool)) for pool in pools] == [60]


def test_the_second_time_there_is_nothing_to_do_and_a_new_seed_is_added(finished, teacher_file, pool_folder):
    study, out, before = finished
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/summary.json")}
    again = kd3.study(
        study, out, teacher=teacher_file, student="kd3:resnet8", pool=pool_folder, device="cpu", precision="32",
        seeds=[0, 1], rows=["KD3"], eval_data=eval_data_of(out),
    )  # fmt: skip
    # Only one row was to be run; the table holds what was run of the other before.
    assert [(line["row"], line["seeds"]) for line in again.to_dict()["table"]] == [("KD3", 2), ("KD, half", 1)]
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert again.to_dict()["runs"][0]["agreement"] == before["table"][0]["measures"]["agreement"]["mean"]


def test_runs_of_another_machine_count_as_finished(finished, teacher_file, pool_folder, tmp_path):
    study, out, _ = finished
    values = {
        "teacher": teacher_file,
        "student": "kd3:resnet8",
        "pool": pool_folder,
        "device": "cpu",
        "precision": "32",
    }
    there = json.loads((out / "results.json").read_text())
    values |= {"precision": "32", "eval_data": eval_data_of(out), "known": [str(out / "results.json")]}
    here = kd3.study(study, tmp_path / "a", **values)
    # Another test may have added a seed there.
    assert json.loads(json.dumps(here.to_dict()))["runs"] == [run for run in there["runs"] if run["seed"] == 0]
    assert not list(tmp_path.glob("a/runs/*"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("origin.json", "{"),
        ("origin.json", '{"teacher": "t", "pool": "p"}'),
        ("metrics.jsonl", ""),
        ("metrics.jsonl", '{"event": "evaluation", "step": 1, "images": 64, "seconds": 1.0, "agreement": "all"}\n'),
    ],
)
def test_a_run_whose_records_are_damaged_is_named(name, text, finished, tmp_path):
    _, out, _ = finished
    shutil.copytree(out / "runs" / "kd3-seed0", tmp_path / "runs" / "kd3-seed0")
    (tmp_path / "runs" / "kd3-seed0" / name).write_text(text)
    cell = SimpleNamespace(name="kd3-seed0", row="KD3", series="KD3", x=None, pool="crawl", seed=0)
    with pytest.raises(kd3.KD3Error, match="kd3-seed0"):
        read_run(StudyFolder(tmp_path), cell, {})


def test_a_run_counts_under_another_rows_name(finished, teacher_file, pool_folder, tmp_path):
    _, out, _ = finished
    study = write(tmp_path, rows=[{**ROWS[0], "name": "the default"}])
    known = ["--known", str(out / "results.json"), "--eval-data", eval_data_of(out), "--json"]
    done = call(teacher_file, pool_folder, study, tmp_path / "a", *known)
    assert [run["row"] for run in json.loads(done.stdout)["runs"]] == ["the default"]
    assert not list(tmp_path.glob("a/runs/*"))


def test_a_run_of_other_settings_elsewhere_is_run_anew(finished, teacher_file, pool_folder, tmp_path):
    study, out, _ = finished
    known = ["--known", str(out / "results.json"), "--images", "32"]
    done = call(teacher_file, pool_folder, study, tmp_path / "a", "--rows", "KD3", *known, "--json")
    assert done.returncode == 0, done.stderr
    (warning,) = [line for line in done.stderr.splitlines() if "run anew" in line]
    assert warning.endswith("tells of train.images 64, not 32: kd3-seed0")  # and nothing of the rows not asked for
    assert [run["images"] for run in json.loads(done.stdout)["runs"]] == [32]


def test_a_file_that_holds_no_results_is_refused_before_a_run(finished, teacher_file, pool_folder, tmp_path):
    study, *_ = finished
    (tmp_path / "bad.json").write_text("[]")
    done = call(teacher_file, pool_folder, study, tmp_path / "a", "--known", str(tmp_path / "bad.json"))
    assert done.returncode == 2
    assert "bad.json does not hold what a study writes as results.json" in " ".join(done.stderr.split())
    assert not list(tmp_path.glob("a/runs/*"))


def eval_data_of(out):
    return yaml.safe_load((out / "runs" / "kd3-seed0" / "config.yaml").read_text())["eval_data"]


def test_pools_of_other_kinds_are_given_by_name(teacher_file, pool_folder, tmp_path):
    rows = [{"name": "a", "pool": "sketch"}, {"name": "b", "pool": {"mixed_with": "other", "mixed_share": 0.5}}]
    study = write(tmp_path, given=["sketch"], rows=rows)
    words = [teacher_file, pool_folder, study, tmp_path / "out", "--dry-run", "true", "--other"]
    named = call(*words, f"sketch={pool_folder}")
    assert "1 rows, 1 runs" in named.stdout
    assert "row 'b' is left out" in named.stderr
    assert "2 rows, 2 runs" in call(*words, f"{pool_folder},sketch={pool_folder}").stdout
    for wrong, told in (("crawl", "names the pool 'crawl' twice"), ("sketsh", "did you mean 'sketch'")):
        done = call(*words, f"{wrong}={pool_folder}")
        assert done.returncode == 2
        assert told in " ".join(done.stderr.split())


def test_a_dry_run_writes_nothing(teacher_file, pool_folder, tmp_path):
    done = call(teacher_file, pool_folder, write(tmp_path), tmp_path / "out", "--dry-run", "true")
    assert done.returncode == 0
    assert "2 rows, 2 runs of 64 training images, 1 pools to make" in done.stdout
    assert not (tmp_path / "out").exists()


def test_a_dry_run_lists_the_runs_and_their_states(teacher_file, pool_folder, tmp_path):
    dial = {"name": "T", "settings": {"method": "kd"}, "vary": {"kd.temperature": [4, 8]}}
    rows = [dial, {"name": "plain", "settings": {"method": "kd"}}]
    for name, finished in (("t-temperature-8-seed0", True), ("plain-seed1", False)):
        run = tmp_path / "out" / "runs" / name
        run.mkdir(parents=True)
        (run / "config.yaml").write_text("{}")
        if finished:
            (run / "summary.json").write_text("{}")
    words = ["--dry-run", "true", "--seeds", "0,1"]
    done = call(teacher_file, pool_folder, write(tmp_path, rows=rows), tmp_path / "out", *words)
    assert done.returncode == 0, done.stderr
    assert dict(line.split(maxsplit=1) for line in done.stdout.splitlines()[1:]) == {
        "t-temperature-4-seed0": "to be made",
        "t-temperature-4-seed1": "the same as plain-seed1",
        "t-temperature-8-seed0": "finished",
        "t-temperature-8-seed1": "to be made",
        "plain-seed0": "the same as t-temperature-4-seed0",
        "plain-seed1": "interrupted, will continue",
    }
    done = call(teacher_file, pool_folder, tmp_path / "mine.yaml", tmp_path / "out", *words, "--json")
    states = {run["run"]: run["state"] for run in json.loads(done.stdout)["planned"]}
    assert (states["t-temperature-8-seed0"], states["plain-seed1"]) == ("finished", "interrupted")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rows": [{"name": "a", "settings": {"method": "kd4"}}]}, "unknown method 'kd4'"),
        ({"rowz": []}, "unknown setting 'rowz'"),
        ({"rows": [{"name": "a", "pool": {"change": "blurr", "strength": 0.1}}]}, "blurr"),
        ({"rows": [{"name": "a", "pool": {"without_classes": 3}}]}, "leaves out 3 of 3 classes"),
        ({"rows": [{"name": "a", "pool": {"without_classes": ["horse"]}}]}, "leaves out class 'horse'"),
    ],
)
def test_a_wrong_study_is_one_sentence(values, words, teacher_file, pool_folder, tmp_path):
    done = call(teacher_file, pool_folder, write(tmp_path, **values), tmp_path / "out")
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").glob("runs/*"))


def test_a_pool_of_one_class_is_refused_before_a_run(blind_teacher_file, pool_folder, tmp_path):
    done = call(blind_teacher_file, pool_folder, write(tmp_path), tmp_path / "out")
    assert done.returncode == 2
    assert "takes all 120 images of the pool" in done.stderr
    assert "for one class, 'dog'" in done.stderr
    assert not list((tmp_path / "out").glob("runs/*"))


def test_a_pool_of_smaller_images_is_refused_before_a_run(teacher_file, crawl, tmp_path):
    kd3.ingest(crawl, tmp_path / "pool", image_size=12, workers=0)
    done = call(teacher_file, tmp_path / "pool", write(tmp_path), tmp_path / "out")
    assert done.returncode == 2
    assert "images of 12 pixels but the teacher takes 16" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_study_of_larger_pools_asks_the_teacher_at_its_own_size(teacher_file, crawl, tmp_path, monkeypatch):
    for side in (16, 40):
        kd3.ingest(crawl, tmp_path / f"{side}", image_size=side, workers=0, quiet=True)
    seen, asked = set(), Normalisation.__call__
    monkeypatch.setattr(Normalisation, "__call__", lambda self, x: seen.add(x.shape[-1]) or asked(self, x))
    study, found = write(tmp_path, rows=ROWS[:1], measure_shift=True), {}
    for side in (16, 40):
        done = call(teacher_file, tmp_path / f"{side}", study, tmp_path / f"out{side}", "--json")
        assert done.returncode == 0, done.stderr
        found[side] = json.loads(done.stdout)["distances"]["crawl"]
    assert seen == {16}
    assert found[40]["batch_norms_mean"] == pytest.approx(found[16]["batch_norms_mean"], rel=0.3)


@pytest.mark.parametrize("changed", ["teacher", "pool"])
def test_results_of_another_teacher_or_pool_at_the_same_place_are_not_passed_off(
    changed, teacher_file, crawl, tmp_path
):
    teacher = shutil.copytree(teacher_file.parent, tmp_path / "teacher") / teacher_file.name
    kd3.ingest(crawl, tmp_path / "pool", image_size=16, workers=0, quiet=True)
    words = (teacher, tmp_path / "pool", write(tmp_path, rows=ROWS[1:]), tmp_path / "out")
    assert call(*words).returncode == 0
    if changed == "teacher":
        teacher.write_text(yaml.safe_dump({**yaml.safe_load(teacher.read_text()), "std": [0.3, 0.3, 0.3]}))
    else:
        shutil.rmtree(tmp_path / "pool")
        kd3.ingest(crawl, tmp_path / "pool", image_size=18, workers=0, quiet=True)
        shutil.rmtree(tmp_path / "out" / "pools")
    done = call(*words)
    assert done.returncode == 2
    assert f"the {changed} is not what the run" in done.stderr
    assert done.stderr.count("Traceback") == 0


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_student_that_was_adapted_later_keeps_the_accuracy_that_is_known(share, finished, tmp_path):
    folder = StudyFolder(shutil.copytree(finished[1], tmp_path / "copy"))
    cell = SimpleNamespace(name="kd3-seed0", row="KD3", series="KD3", x=None, pool="crawl", seed=0)
    summary = json.loads((folder.run(cell) / "summary.json").read_text())
    summary.pop("recall", None)
    before = read_run(with_summary(folder, cell, summary), cell, {}).accuracy
    assert before is not None
    record = {
        "kind": "given", "images": 9, "where": "here", "share": share, "agreement_before": 50.0, "kept_out": 0,
        "agreement_after": 60.0, "distance_before": 1.0, "distance_after": 0.5, "gap_before": None, "gap_after": None,
        "accuracy_before": None, "accuracy_after": None,
    }  # fmt: skip
    found = read_run(with_summary(folder, cell, with_adaptation(summary, record)), cell, {})
    assert found.accuracy == (None if share else before)


def with_summary(folder, cell, summary):
    (folder.run(cell) / "summary.json").write_text(json.dumps(summary))
    return folder


def test_a_failed_run_is_told_and_the_table_holds_the_others(teacher_file, pool_folder, tmp_path):
    rows = [{"name": "no such network", "settings": {"student": "kd3:resnet9999"}}, ROWS[0]]
    done = call(teacher_file, pool_folder, write(tmp_path, rows=rows), tmp_path / "out")
    assert done.returncode == 2
    assert "1 of 2 runs failed; no-such-network-seed0" in done.stderr
    assert f"run kd3-seed0: its output goes to {tmp_path}/out/logs/kd3-seed0.txt" in done.stderr
    assert "| KD3 | 1 |" in (tmp_path / "out" / "table.md").read_text()


def test_ctrl_c_stops_the_runs_and_the_same_command_goes_on(teacher_file, pool_folder, tmp_path):
    study = write(tmp_path, images=60_000, rows=ROWS[:1])
    words = command(teacher_file, pool_folder, study, tmp_path / "out")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    run = tmp_path / "out" / "runs" / "kd3-seed0"
    deadline = time.monotonic() + 120
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "the same command goes on" in errors
    assert (run / "checkpoints" / "last.pt").is_file()
    assert not (run / "summary.json").exists()


@pytest.mark.parametrize("rows", [ROWS[:1], ROWS], ids=["as given", "a part"])
@pytest.mark.parametrize("measured", [False, True])
def test_a_pool_with_flipped_pixels_is_named_as_damaged(rows, measured, teacher_file, pool_folder, tmp_path):
    pool = Path(shutil.copytree(pool_folder, tmp_path / "pool"))
    part = pool / "images-00000.bin"
    pixels = bytearray(part.read_bytes())
    pixels[5000] ^= 0x40
    part.write_bytes(pixels)
    study = write(tmp_path, rows=rows, measure_shift=measured)
    done = call(teacher_file, pool, study, tmp_path / "out")
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert f"pool {pool} is damaged: {part.name} is not what was written" in last
    assert f"kd3 pool verify {pool} names the images" in last
    assert not list((tmp_path / "out").glob("*/*.json"))  # no distance of such pixels is kept
