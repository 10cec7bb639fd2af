"""Work killed at any moment resumes, with the same final result; `make chaos` kills far more often.

Children are forked from this process, which has imported everything: a child is the real command from its first line
on, and is killed by SIGKILL at a random moment of the time that it takes undisturbed.
"""

import json
import os
import signal
import tempfile
import time
from contextlib import suppress

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import kd3
from kd3.cli import main
from kd3.pool import ImagePool

KILLS = int(os.environ.get("KD3_KILLS", "5"))  # of each phase
LONGEST = 300.0  # seconds of one attempt, on the busiest machine

pytestmark = [pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"), pytest.mark.timeout(3600)]


def child(words, *, kill_after=None):
    """Run `kd3 WORDS` in a forked child; return its exit status, or None if it was killed in time.

    Its output goes to a file, which is shown if a test fails.
    """
    with tempfile.TemporaryFile() as said:
        return _child(words, said, kill_after)


def _child(words, said, kill_after):
    pid = os.fork()
    if pid == 0:
        status = 99
        with suppress(BaseException):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(said.fileno(), 2)
            torch.set_num_threads(1)
            status = main([str(word) for word in words])
        os._exit(status)
    start = time.monotonic()
    while time.monotonic() - start < LONGEST:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            said.seek(0)
            print(said.read().decode(errors="replace"))
            return os.waitstatus_to_exitcode(status)
        if kill_after is not None and time.monotonic() - start >= kill_after:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"{words[0]} did not end in {LONGEST} s")


def undisturbed(words):
    start = time.monotonic()
    assert child(words) == 0
    return time.monotonic() - start


def survive(command, length, kills, draw):
    """Kill the words of `command()` repeatedly, then let them end; return the number of kills."""
    hits = 0
    for _ in range(kills):
        status = child(command(), kill_after=draw.uniform(0, length))
        if status is None:
            hits += 1
        else:
            assert status == 0
            return hits  # it had ended before the kill
    assert child(command()) == 0
    return hits


def kills_of(phase, once, kills=KILLS):
    """Repeat `once(place, kills, draw)` until the given number of kills have hit; report the outcome."""
    draw = np.random.default_rng(len(phase))
    hits = rounds = 0
    start = time.monotonic()
    while hits < kills:
        rounds += 1
        assert rounds < 20 * kills, "the kills do not hit"
        hits += once(rounds, int(draw.integers(1, 4)), draw)
    print(f"chaos: {phase}: {hits} kills in {rounds} rounds survived, {time.monotonic() - start:.0f} s")


@pytest.fixture(scope="module")
def heap(tmp_path_factory):
    """Pictures, duplicates and other files."""
    folder = tmp_path_factory.mktemp("heap")
    draw = np.random.default_rng(5)
    for number in range(400):
        colours = draw.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(colours).resize((24, 24), Image.Resampling.BICUBIC).save(folder / f"{number:03d}.png")
        if number % 50 == 7:
            (folder / f"{number:03d}_again.png").write_bytes((folder / f"{number:03d}.png").read_bytes())
            (folder / f"{number:03d}_page.jpg").write_text("<html>")
    return folder


def files_of(folder, *names):
    return {name: (folder / name).read_bytes() for name in names}


LISTS = ("images-00000.bin", "rejected.csv", "duplicates.csv", "near-duplicates.csv")


def test_ingest(heap, tmp_path, monkeypatch):
    monkeypatch.setattr("kd3.pool.ingestion.COMMIT_FILES", 16)

    def words(out):
        return ["ingest", heap, "--out", out, "--image-size", "16", "--workers", "0", "--dedup", "near", "--quiet"]

    length = undisturbed(words(tmp_path / "whole"))
    whole = ImagePool.open(tmp_path / "whole")

    def once(number, kills, draw):
        out = tmp_path / f"pool{number}"
        hits = survive(lambda: words(out), length, kills, draw)
        pool = ImagePool.open(out)
        assert pool.content_hash == whole.content_hash
        assert files_of(out, *LISTS) == files_of(tmp_path / "whole", *LISTS)
        assert pool.index().equals(whole.index())
        assert pool.manifest.counts == whole.manifest.counts
        assert pool.verify() == []
        return hits

    kills_of("ingest", once)


def history(run):
    """The events of a run without times."""
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: v for name, v in event.items() if name not in ("seconds", "images_per_second")} for event in events]


@pytest.mark.parametrize(
    "more",
    [
        ["--kd3.selection", "dynamic", "--kd3.threshold", "0.7"],
        pytest.param(
            [
                "--kd3.contrastive",
                "mixdistribution",
                "--fixed-views",
                "2",
                "--kd3.selection",
                "dynamic",
                "--kd3.scoring",
                "training",
            ],
            marks=pytest.mark.slow,
        ),
        pytest.param(["--method", "dfnd", "--optimizer", "sgd"], marks=pytest.mark.slow),
    ],
    ids=["kd3", "contrastive", "dfnd"],
)
def test_distill(more, teacher_file, pool_folder, tmp_path):
    flags = ["--teacher", teacher_file, "--student", "kd3:resnet8", "--pool", pool_folder, "--device", "cpu"]
    flags += ["--precision", "32", "--images", "400", "--batch-size", "16", "--holdout", "12", "--evals", "3"]
    flags += ["--checkpoint-minutes", "0.001", "--quiet", *more]

    def words(out):
        if (out / "config.yaml").is_file():
            return ["distill", "--resume", "--out", out, "--quiet"]
        return ["distill", "--out", out, *flags]

    length = undisturbed(words(tmp_path / "whole"))
    whole = tmp_path / "whole"

    def once(number, kills, draw):
        out = tmp_path / f"run{number}"
        hits = survive(lambda: words(out), length, kills, draw)
        assert files_of(out, "student/model.safetensors") == files_of(whole, "student/model.safetensors")
        assert history(out) == history(whole)
        for path in sorted((whole / "selections").iterdir()):
            assert (out / "selections" / path.name).read_bytes() == path.read_bytes()
        return hits

    kills_of(f"distill {' '.join(more)}", once, max(2, KILLS // 2))


STUDY = {
    "title": "Two methods",
    "images": 320,
    "seeds": [0],
    "common": {"train": {"batch_size": 16, "holdout": 12, "checkpoint_steps": 3}, "track": "none", "precision": "32"},
    "rows": [{"name": "kd3", "settings": {"method": "kd3"}}, {"name": "kd", "settings": {"method": "kd"}}],
}


@pytest.mark.slow
def test_study(centred_teacher_file, pool_folder, tmp_path):
    """Its runs are separate processes, which end with it and release their folders for the next attempt."""
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    flags = ["--teacher", centred_teacher_file, "--student", "kd3:resnet8", "--pool", pool_folder, "--device", "cpu"]

    def words(out):
        return ["study", tmp_path / "study.yaml", "--out", out, *flags, "--quiet"]

    length = undisturbed(words(tmp_path / "whole"))

    def once(number, kills, draw):
        out = tmp_path / f"study{number}"
        hits = survive(lambda: words(out), length, kills, draw)
        for name in ("kd3-seed0", "kd-seed0"):
            one, other = (place / "runs" / name for place in (out, tmp_path / "whole"))
            assert files_of(one, "student/model.safetensors") == files_of(other, "student/model.safetensors")
            assert history(one) == history(other)
        assert len((out / "table.csv").read_text().splitlines()) == 3
        return hits

    kills_of("study", once, max(2, KILLS // 8))


def test_export_is_whole_or_not_there(teacher_file, pool_folder, tmp_path):
    small = {"images": 64, "batch_size": 16, "holdout": 12, "precision": "32", "device": "cpu"}
    kd3.distill(teacher_file, "kd3:resnet8", pool_folder, tmp_path / "run", **small)

    def words(out):
        return ["export", tmp_path / "run", "--out", out, "--format", "safetensors,torchscript", "--check-images", "20"]

    length = undisturbed(words(tmp_path / "whole"))
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())

    def once(number, kills, draw):
        out = tmp_path / f"shipped{number}"

        hits = 0
        for _ in range(kills):
            if child(words(out), kill_after=draw.uniform(0, length)) is None:
                hits += 1
            if out.exists() and list(out.iterdir()):
                break  # whole, as is seen below
        else:
            assert child(words(out)) == 0
        assert sorted(path.name for path in out.iterdir()) == names
        return hits

    kills_of("export", once, max(2, KILLS // 2))
