"""Comparison of the students of two versions of kd3."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from benchmarks.same import RUNS, differences, digests
from safetensors.numpy import save_file


def run_folder(path: Path, *, loss: float = 0.5, seconds: float = 1.0, weight: float = 1.0) -> Path:
    (path / "selections").mkdir(parents=True)
    (path / "student").mkdir()
    np.save(path / "selections" / "00001.npy", np.arange(3))
    about = {"pool": str(path)}  # as the record of recall does
    save_file({"weight": np.float32([weight])}, path / "student" / "model.safetensors", metadata=about)
    event = {"event": "train", "loss": loss, "seconds": seconds, "images_per_second": 1 / seconds}
    (path / "metrics.jsonl").write_text(json.dumps(event) + "\n")
    return path


def test_a_slower_run_of_the_same_student_is_the_same(tmp_path):
    assert digests(run_folder(tmp_path / "a")) == digests(run_folder(tmp_path / "b", seconds=7.0))


def test_another_loss_or_weight_is_named(tmp_path):
    same = digests(run_folder(tmp_path / "a"))
    found = dict.fromkeys(RUNS, same)
    other = {**found, "kd": digests(run_folder(tmp_path / "b", loss=0.6, weight=2.0))}
    assert differences(found, found) == []
    assert differences(found, other) == ["kd: metrics.jsonl, model.safetensors"]
