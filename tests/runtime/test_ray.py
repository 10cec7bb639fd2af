"""Ingest and study on a local Ray cluster of two workers, one of which is killed in the middle."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import kd3
from kd3.cli import main
from kd3.runtime.errors import KD3Error
from kd3.runtime.ray_tasks import Piece, do_all

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'kd3[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def cluster():
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # where workers find this module
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, logging_level="error")
    yield
    ray.shutdown()
    del os.environ["PYTHONPATH"]
    if before is not None:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="module")
def heap(tmp_path_factory):
    """Pictures in folders, a duplicate, and a file that is no picture."""
    folder = tmp_path_factory.mktemp("heap")
    draw = np.random.default_rng(5)
    for number in range(120):
        place = folder / f"{number % 6}"
        place.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(place / f"{number:03d}.png")
    shutil.copy(folder / "1" / "001.png", folder / "5" / "again.png")
    (folder / "2" / "page.jpg").write_text("<html>")
    return folder


def slow_once(marker: str, place: str) -> None:
    """Report this process and wait for a kill at the first call; finish at the second."""
    if not os.path.exists(marker):
        Path(marker).write_text(str(os.getpid()))
        time.sleep(100)
    Path(place).write_text("done")


def wrong(words: str) -> None:
    raise KD3Error(words)


def workers_of(run):
    """Processes that hold a run's lock file open."""
    lock = run / ".lock"
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.path.samefile(handle, lock) for handle in (process / "fd").iterdir()):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def kill_whoever_writes(marker: Path) -> None:
    deadline = time.monotonic() + 60
    while not (marker.is_file() and marker.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(int(marker.read_text()), signal.SIGKILL)


def test_a_piece_whose_worker_is_killed_is_done_by_another(cluster, tmp_path):
    marker, place = tmp_path / "marker", tmp_path / "place"
    pieces = [
        Piece("slow", "test_ray:slow_once", {"marker": str(marker), "place": str(place)}, tmp_path / "slow.txt"),
        Piece("wrong", "test_ray:wrong", {"words": "it is Tuesday"}, tmp_path / "wrong.txt"),
    ]
    killer = threading.Thread(target=kill_whoever_writes, args=(marker,))
    killer.start()
    done = {one.name: one for one in do_all(ray, pieces)}
    killer.join()
    assert done["slow"].problem is None
    assert place.read_text() == "done"
    assert (done["wrong"].problem, done["wrong"].kind) == ("it is Tuesday", "KD3Error")
    assert (tmp_path / "wrong.txt").read_text() == "kd3: it is Tuesday\n"


def test_an_ingest_in_parts_is_the_ingest_of_the_whole(cluster, heap, tmp_path, capsys):
    whole = kd3.ingest(heap, tmp_path / "whole", image_size=16, workers=0)
    command = ["ingest", str(heap), "--out", str(tmp_path / "pool"), "--image-size", "16", "--engine", "ray"]
    assert main(command) == 0
    pool = kd3.ImagePool.open(tmp_path / "pool")
    assert pool.content_hash == whole.content_hash
    assert pool.manifest.counts == whole.manifest.counts
    assert pool.verify() == []
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "pool"}
    capsys.readouterr()
    assert main(command) == 0
    assert "is finished; there is nothing to do" in capsys.readouterr().err
    assert main([*command[:5], "20", *command[6:]]) == 2
    assert "begun with image_size = 16, not 20" in capsys.readouterr().err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for the worker in /proc")
def test_an_ingest_survives_the_loss_of_a_worker(cluster, tmp_path):
    draw = np.random.default_rng(6)
    for number in range(4000):
        place = tmp_path / "crawl" / f"{number % 40:02d}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(place / f"{number:04d}.png")
    whole = kd3.ingest(tmp_path / "crawl", tmp_path / "whole", image_size=16, workers=0)
    killed = []

    def kill_one():
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            for part in (tmp_path / "pool.parts").glob("*-of-*"):
                for worker in workers_of(part):
                    if part.is_dir() and worker != os.getpid() and not killed:
                        os.kill(worker, signal.SIGKILL)
                        killed.append(worker)

    killer = threading.Thread(target=kill_one)
    killer.start()
    command = ["ingest", str(tmp_path / "crawl"), "--out", str(tmp_path / "pool"), "--image-size", "16"]
    assert main([*command, "--engine", "ray"]) == 0
    killer.join()
    assert killed
    pool = kd3.ImagePool.open(tmp_path / "pool")
    assert pool.content_hash == whole.content_hash
    assert pool.manifest.counts == whole.manifest.counts
    assert pool.verify() == []


def test_an_ingest_of_nothing_usable_says_so(cluster, tmp_path, capsys):
    (tmp_path / "crawl").mkdir()
    (tmp_path / "crawl" / "page.jpg").write_text("<html>")
    command = ["ingest", str(tmp_path / "crawl"), "--out", str(tmp_path / "pool"), "--image-size", "16"]
    assert main([*command, "--engine", "ray"]) == 2
    assert "of the crawl: " in capsys.readouterr().err
    assert not (tmp_path / "pool").exists()
    assert main([*command, "--engine", "ray", "--shard", "1/2"]) == 2
    assert "engine ray cuts the crawl into parts itself" in capsys.readouterr().err


STUDY = {
    "title": "Two methods",
    "images": 3200,
    "seeds": [0],
    "common": {"train": {"batch_size": 16, "holdout": 12, "checkpoint_steps": 5}, "track": "none", "precision": "32"},
    "rows": [
        {"name": "KD3", "settings": {"method": "kd3"}},
        {"name": "KD", "settings": {"method": "kd"}},
        {"name": "SimKD", "settings": {"method": "simkd"}},
    ],
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for the worker in /proc")
def test_a_study_survives_the_loss_of_a_worker(centred_teacher_file, pool_folder, tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    command = [sys.executable, "-m", "kd3", "study", "study.yaml", "--teacher", str(centred_teacher_file), "--pool"]
    command += [str(pool_folder), "--student", "kd3:resnet8", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    study = subprocess.Popen(
        [*command, "--out", "disturbed", "--engine", "ray"],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    run = tmp_path / "disturbed" / "runs" / "kd3-seed0"
    deadline = time.monotonic() + 120
    while not ((run / "checkpoints" / "last.pt").is_file() and workers_of(run)):
        assert time.monotonic() < deadline
        assert study.poll() is None, study.communicate()
        time.sleep(0.02)
    for worker in workers_of(run):
        os.kill(worker, signal.SIGKILL)
    out, errors = study.communicate(timeout=250)
    assert study.returncode == 0, errors
    assert all(name in out for name in ("KD3", "SimKD"))
    assert "interrupted" not in errors
    done = subprocess.run([*command, "--out", "quiet"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("kd3-seed0", "kd-seed0", "simkd-seed0"):
        places = [tmp_path / study / "runs" / name for study in ("disturbed", "quiet")]
        one, other = (kd3.load_student(place).state_dict() for place in places)
        for key, value in one.items():
            np.testing.assert_array_equal(value.numpy(), other[key].numpy(), err_msg=f"{name} {key}")
