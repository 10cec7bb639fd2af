"""`make gpu` in its dry form: everything once, tiny, on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def pretended(*words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
    )


@pytest.mark.slow
def test_every_part_runs_once_is_kept_and_makes_a_page(tmp_path):
    done = pretended("--pretend", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    known = json.loads((tmp_path / "gpu.json").read_text())
    assert set(known["parts"]) == {"losses", "run", "bound", "steps", "large_pool", "two_devices"}
    assert known["parts"]["run"]["selections in common"] == 1.0
    page = (tmp_path / "gpu.md").read_text()
    assert "images/s" in page
    assert "**no**" not in page
    again = pretended("--pretend", "--out", tmp_path)
    assert again.returncode == 0
    assert "benchmarks.gpu: losses" not in again.stderr  # nothing is measured twice


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_one_sentence_and_nothing_written(tmp_path):
    done = pretended("--out", tmp_path / "gpu")
    assert done.returncode == 2
    assert done.stderr.startswith("benchmarks.gpu: device 'cuda' was asked for")
    assert not (tmp_path / "gpu").exists()
