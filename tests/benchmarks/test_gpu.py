"""`make gpu` in its dry form: everything once, tiny, on the CPU."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from kd3.runtime.compute import resolve

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


def test_every_part_runs_once_is_kept_and_makes_a_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", "--pretend", "--out", str(tmp_path)])
    assert gpu.main() == 0
    known = json.loads((tmp_path / "gpu.json").read_text())
    assert set(known["parts"]) == {"losses", "run", "bound", "steps", "large_pool", "two_devices"}
    assert known["parts"]["run"]["selections in common"] == 1.0
    by_two = known["parts"]["two_devices"]
    assert by_two["passed"]
    assert len([name for name in by_two if name.startswith("2 x CPU")]) == 1, "two processes ran"
    assert len([name for name in by_two if name.startswith("CPU")]) == 1, "and one to compare with"
    assert by_two["largest relative difference"] < 1e-3
    page = (tmp_path / "gpu.md").read_text()
    assert "images/s" in page
    assert "**no**" not in page
    capsys.readouterr()
    assert gpu.main() == 0
    assert "benchmarks.gpu: losses" not in capsys.readouterr().err  # nothing is measured twice


@pytest.fixture
def bench(tmp_path):
    """The dry form's bench."""
    return gpu.Bench(resolve("cpu", "32"), tmp_path, pretend=True)


def test_with_one_device_the_part_for_two_says_so(bench, monkeypatch):
    monkeypatch.setattr(gpu.Bench, "devices", 1)
    assert gpu.two_devices(bench) == {"left out": "there is one device"}
    assert "| two_devices |" in gpu.as_page(
        {
            "machine": dict.fromkeys(("compute", "date", "torch", "kd3"), "x"),
            "parts": {"two_devices": gpu.two_devices(bench)},
        }
    )


def test_two_processes_that_do_not_end_are_reported(bench, monkeypatch):
    monkeypatch.setattr(gpu.Bench, "patience", 0.05)
    assert gpu.two_devices(bench) == {"passed": False, "said": "two processes did not end within 0 s"}


def test_two_processes_that_fail_are_reported_in_their_words(bench, monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "3", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    told = gpu.two_devices(bench)
    assert not told["passed"]
    assert told["said"].startswith("kd3: torchrun has started 3 processes")


def test_a_check_that_fails_is_marked_and_ends_with_2(tmp_path, monkeypatch):
    def hung(bench):
        """Report processes that hung."""
        return {"said": "it hung", "passed": False}

    monkeypatch.setattr(gpu, "PARTS", {"two_devices": hung})
    assert not gpu.measured(Namespace(pretend=True, device="cuda", out=tmp_path / "gpu", minutes=9.0))
    assert '| two_devices | {"said": "it hung"} | **no** |' in (tmp_path / "gpu" / "gpu.md").read_text()
    monkeypatch.setattr(sys, "argv", ["gpu", "--pretend", "--out", str(tmp_path / "gpu")])
    assert gpu.main() == 2, "also when the result is known from before"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_one_sentence_and_nothing_written(tmp_path):
    done = pretended("--out", tmp_path / "gpu")
    assert done.returncode == 2
    assert done.stderr.startswith("benchmarks.gpu: device 'cuda' was asked for")
    assert not (tmp_path / "gpu").exists()
