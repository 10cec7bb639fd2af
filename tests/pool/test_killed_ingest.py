"""Real worker processes and a real SIGKILL: no process survives, and the next run continues."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pool_pictures import some_files, tar_of

import kd3
from kd3.pool import ImagePool

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="children are read from /proc")

COMMITTED = 64 * 3 * 16 * 16  # bytes of pixels; where there are more, the first 64 files are recorded
INGEST = """
import sys, kd3
from kd3.pool import ingestion
ingestion.COMMIT_FILES = 64
kd3.ingest(sys.argv[1], sys.argv[2], image_size=16, workers=2)
"""


def children(parent: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found


def is_alive(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def start(source: Path, out: Path) -> subprocess.Popen[bytes]:
    """Start an ingest and return once it has committed pixels."""
    process = subprocess.Popen([sys.executable, "-c", INGEST, source, out], stderr=subprocess.DEVNULL)
    part = out / "images-00000.bin"
    while not (part.exists() and part.stat().st_size > COMMITTED):
        assert process.poll() is None
        time.sleep(0.002)
    return process


@pytest.fixture(scope="module", params=["a.tar", "a.tar.gz"])
def shard(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = some_files(2000)
    files |= {"0/dup.png": files["0/00003.png"], "1/junk.png": b"junk"}
    path: Path = tmp_path_factory.mktemp("shard") / request.param
    return tar_of(path, files, "w:gz" if path.suffix == ".gz" else "w")


@pytest.fixture
def killed(shard: Path, tmp_path: Path) -> tuple[Path, list[int]]:
    """A pool whose ingest was killed in the middle, and the processes that it had started."""
    process = start(shard, tmp_path / "pool")
    helpers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert helpers
    assert not (tmp_path / "pool/manifest.json").exists()
    return tmp_path / "pool", helpers


def test_next_run_gives_the_pool_of_an_uninterrupted_one(
    killed: tuple[Path, list[int]], shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = killed
    resumed = kd3.ingest(shard, out, image_size=16, workers=2)
    assert "continuing after" in capsys.readouterr().err
    whole = kd3.ingest(shard, tmp_path / "whole", image_size=16, workers=0)
    assert resumed.content_hash == whole.content_hash
    assert resumed.index().equals(whole.index())
    assert resumed.manifest.counts == whole.manifest.counts
    assert resumed.verify() == []
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}


def test_workers_end_with_a_parent_that_is_killed(killed: tuple[Path, list[int]]) -> None:
    _, helpers = killed
    deadline = time.monotonic() + 30
    while any(map(is_alive, helpers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [process for process in helpers if is_alive(process)]
    for process in left:
        os.kill(process, signal.SIGKILL)
    assert left == []


def test_second_process_is_refused_and_the_first_unharmed(shard: Path, tmp_path: Path) -> None:
    out = tmp_path / "pool"
    first = start(shard, out)
    first.send_signal(signal.SIGSTOP)  # holds the lock for as long as we look
    try:
        with pytest.raises(kd3.KD3Error, match="another process is at work"):
            kd3.ingest(shard, out, image_size=16, workers=0)
    finally:
        first.send_signal(signal.SIGCONT)
    assert first.wait(60) == 0
    assert ImagePool.open(out).verify() == []
