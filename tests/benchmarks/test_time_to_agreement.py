"""Seconds to an agreement, from made-up runs."""

import json
from pathlib import Path

import pytest

from kd3.runtime.errors import KD3Error


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))


def made(folder, method, looks):
    folder.mkdir()
    (folder / "config.yaml").write_text(f"method: {method}\n")
    events = [{"event": "train", "loss": 1.0}]
    events += [{"event": "evaluation", "seconds": s, "images": i, "agreement": a} for s, i, a in looks]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def test_the_first_look_at_the_target_counts_and_plain_kd_sets_it(tmp_path):
    from benchmarks.time_to_agreement import read, table

    runs = [
        made(tmp_path / "kd0", "kd", [(50, 100, 30.0), (100, 200, 50.0)]),
        made(tmp_path / "kd1", "kd", [(60, 100, 55.0), (120, 200, 54.0)]),
        made(tmp_path / "a", "kd3", [(20, 50, 40.0), (40, 100, 52.0), (60, 150, 49.0), (90, 200, 60.0)]),
        made(tmp_path / "b", "kd3", [(20, 50, 40.0), (70, 200, 51.9)]),
    ]
    lines = table([read(run) for run in runs], None).splitlines()
    assert lines[0].startswith("target: 52.0%")
    assert "kd0: not reached" in lines[1]
    assert "kd1: 60 s, 100 images (ends with 54.0% after 120 s)" in lines[2]
    assert "a: 40 s, 100 images" in lines[3]
    assert "plain KD's whole run: 110 s" in lines[5]
    assert lines[-1] == "kd3, 200 images: 40 s (1 of 2 runs); plain KD's whole run takes 2.75 times as long"
    assert "kd3, 200 images: 55 +- 21 s (2 of 2 runs)" in table([read(run) for run in runs], 50.0)


def test_without_plain_kd_a_target_must_be_given(tmp_path):
    from benchmarks.time_to_agreement import read, table

    run = made(tmp_path / "a", "kd3", [(20, 50, 40.0)])
    with pytest.raises(KD3Error, match="give --target"):
        table([read(run)], None)
    assert "20 s" in table([read(run)], 35.0)


def test_what_is_no_run_is_reported(tmp_path):
    from benchmarks.time_to_agreement import read

    with pytest.raises(KD3Error, match="is no run"):
        read(tmp_path)
    with pytest.raises(KD3Error, match="has not looked"):
        read(made(tmp_path / "a", "kd3", []))
