"""The teacher's logits beside the pool: computed once, never stale, never in the way."""

import errno
import hashlib
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import kd3
from kd3.runtime.compute import resolve
from kd3.scoring import teacher_cache as kept
from kd3.scoring.batches import PoolBatches
from kd3.scoring.teacher_cache import (
    COMPARED,
    DIGEST_BYTES,
    drawn_to_compare,
    logits_of_part,
    place_of,
    teacher_logits,
)

COMPUTE = resolve("cpu", "32")


@pytest.fixture
def batches(pool_folder, tmp_path):
    fresh = shutil.copytree(pool_folder, tmp_path / "pool", ignore=shutil.ignore_patterns("teacher_logits"))
    return PoolBatches(kd3.ImagePool.open(fresh), COMPUTE)


@pytest.fixture
def teacher(teacher_file):
    return kd3.load_teacher(teacher_file)


@pytest.fixture
def scored(monkeypatch):
    """Number of images in each pass of a network."""
    seen = []
    for name in ("score", "scored"):
        real = getattr(kept, name)
        monkeypatch.setattr(kept, name, lambda *a, real=real, **k: seen.append(len(a[2])) or real(*a, **k))
    return seen


def files(batches):
    return sorted((batches.pool.path / "teacher_logits").glob("*.npy"))


def test_they_are_computed_once_and_are_the_teachers(teacher, batches, scored):
    first = teacher_logits(teacher, batches, COMPUTE)
    images = torch.from_numpy(batches.pool.read(np.arange(len(batches.pool))))
    said = teacher(teacher.normalise(images)).numpy()
    np.testing.assert_allclose(first, said, rtol=1e-4, atol=1e-4)
    assert scored == [len(images)]
    assert np.array_equal(teacher_logits(teacher, batches, COMPUTE), first)
    assert scored == [len(images), COMPARED]


def test_numpy_reads_the_file_and_they_are_mapped_from_it(teacher, batches):
    logits = teacher_logits(teacher, batches, COMPUTE)
    assert np.array_equal(np.load(files(batches)[0]), logits)
    assert not logits.flags.owndata
    assert not logits.flags.writeable


def test_a_changed_teacher_is_never_served_the_old_logits(teacher, batches):
    before = teacher_logits(teacher, batches, COMPUTE)
    with torch.no_grad():
        teacher.module.linear.bias += torch.tensor([1.0, 0.0, 0.0])
    after = teacher_logits(teacher, batches, COMPUTE)
    np.testing.assert_allclose(after[:, 0], before[:, 0] + 1, rtol=1e-5)
    assert len(files(batches)) == 2


def test_another_normalisation_is_another_teacher(teacher, batches):
    other = kd3.Teacher(teacher.module, mean=[0.1] * 3, std=[0.3] * 3, input_size=16)
    assert not np.array_equal(teacher_logits(teacher, batches, COMPUTE), teacher_logits(other, batches, COMPUTE))


def test_a_folded_teacher_keeps_its_own(teacher, batches):
    plain = teacher_logits(teacher, batches, COMPUTE)
    folded = teacher_logits(teacher.folded(), batches, COMPUTE)
    assert len(files(batches)) == 2
    np.testing.assert_allclose(folded, plain, rtol=1e-3, atol=1e-4)


def test_a_changed_pool_is_never_served_the_old_logits(teacher, crawl, tmp_path):
    changed = shutil.copytree(crawl, tmp_path / "crawl")
    pools = []
    for number in range(2):
        pool = kd3.ingest(changed, tmp_path / f"pool{number}", image_size=16, workers=0)
        pools.append(PoolBatches(pool, COMPUTE))
        os.remove(changed / "000.png")
        (changed / "000.png").symlink_to(changed / "001.png")  # one image less, the others as they were
        if number == 0:
            before = teacher_logits(teacher, pools[0], COMPUTE)
            shutil.copytree(tmp_path / "pool0" / "teacher_logits", tmp_path / "pool1" / "teacher_logits")
            os.rename(tmp_path / "pool1", tmp_path / "kept")
    shutil.copytree(tmp_path / "kept" / "teacher_logits", tmp_path / "pool1" / "teacher_logits")
    after = teacher_logits(teacher, pools[1], COMPUTE)
    assert len(after) == len(before) - 1
    np.testing.assert_allclose(after, before[1:], rtol=1e-5, atol=1e-5)


def test_a_teacher_whose_code_changed_is_never_served_the_old_logits(batches, capsys):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.head, self.sign = torch.nn.Linear(3 * 16 * 16, 3), 1

        def forward(self, x):
            return self.head(self.sign * x.flatten(1))

    network = Net()
    one = kd3.Teacher(network, mean=[0.5] * 3, std=[0.25] * 3, input_size=16)
    network.sign = -1
    other = kd3.Teacher(network, mean=[0.5] * 3, std=[0.25] * 3, input_size=16)
    assert one.fingerprint() == other.fingerprint()
    assert not np.array_equal(teacher_logits(one, batches, COMPUTE), teacher_logits(other, batches, COMPUTE))
    assert "does not match this teacher's predictions" in capsys.readouterr().err


def test_logits_that_somebody_else_made_up_are_never_served(teacher, batches, capsys):
    true = np.array(teacher_logits(teacher, batches, COMPUTE))
    path = place_of(teacher, batches.pool, COMPUTE)
    whole = path.read_bytes()[:-DIGEST_BYTES]
    half = -true[len(true) // 2 :]
    forged = whole[: -half.nbytes] + half.tobytes()
    path.write_bytes(forged + hashlib.blake2b(forged, digest_size=DIGEST_BYTES).digest())
    np.testing.assert_allclose(teacher_logits(teacher, batches, COMPUTE), true, rtol=1e-5, atol=1e-5)
    assert "does not match this teacher's predictions" in capsys.readouterr().err


def test_other_stored_outputs_are_compared_each_time():
    drawn = [drawn_to_compare(10_000) for _ in range(3)]
    assert all(len(np.unique(places)) == len(places) == COMPARED for places in drawn)
    assert not np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[1], drawn[2])
    np.testing.assert_array_equal(drawn_to_compare(3), [0, 1, 2])


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


def older(path):
    np.save(path, np.load(path))  # as the first version wrote it: no digest


@pytest.mark.parametrize("damage", [cut, flip, empty, older])
def test_a_damaged_file_is_made_anew_with_a_warning(damage, teacher, batches, capsys):
    first = np.array(teacher_logits(teacher, batches, COMPUTE))
    damage(files(batches)[0])
    assert np.array_equal(teacher_logits(teacher, batches, COMPUTE), first)
    assert "is damaged; the teacher's logits are computed again" in capsys.readouterr().err
    assert np.array_equal(teacher_logits(teacher, batches, COMPUTE), first)
    assert "is damaged" not in capsys.readouterr().err


def test_a_full_disk_costs_the_cache_and_not_the_run(teacher, batches, capsys, monkeypatch, scored):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    logits = teacher_logits(teacher, batches, COMPUTE)
    assert "could not be kept" in (told := capsys.readouterr().err)
    assert "No space left on device" in told
    assert logits.shape == (len(batches.pool), 3)
    assert scored == [len(logits)]  # said before the teacher's work, which is done once
    assert [path.name for path in (batches.pool.path / "teacher_logits").iterdir() if path.suffix != ".lock"] == []


def test_a_pool_that_may_only_be_read_serves_what_is_there(teacher, batches, capsys, monkeypatch, scored):
    first = np.array(teacher_logits(teacher, batches, COMPUTE))

    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(kept, "waiting", refused)
    assert np.array_equal(teacher_logits(teacher, batches, COMPUTE), first)
    assert scored == [len(first), COMPARED]
    files(batches)[0].unlink()
    np.testing.assert_array_equal(teacher_logits(teacher, batches, COMPUTE), first)
    assert "could not be kept" in capsys.readouterr().err


def test_a_pool_in_memory_keeps_them_in_memory(teacher):
    pool = kd3.ImagePool.from_array(np.zeros((30, 3, 16, 16), np.uint8))
    assert teacher_logits(teacher, PoolBatches(pool, COMPUTE), COMPUTE).shape == (30, 3)


def test_of_two_runs_that_begin_together_one_computes(teacher_file, batches, tmp_path):
    script = """
import sys
import numpy as np
import kd3
from kd3.runtime.compute import resolve
from kd3.scoring import teacher_cache as kept
from kd3.scoring.batches import PoolBatches
compute, real = resolve("cpu", "32"), kept.scored
def slow(*a, **k):
    print("computes", flush=True)
    sys.stdin.readline()
    yield from real(*a, **k)
kept.scored = slow
batches = PoolBatches(kd3.ImagePool.open(sys.argv[2]), compute)
logits = kept.teacher_logits(kd3.load_teacher(sys.argv[1]), batches, compute)
print("sum", float(np.abs(logits).sum()))
"""
    command = [sys.executable, "-c", script, str(teacher_file), str(batches.pool.path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as first:
        assert first.stdout.readline() == "computes\n"
        with subprocess.Popen(command, **pipes) as second:
            assert "waiting for it" in second.stderr.readline()
            said, _ = first.communicate("go on\n", timeout=60)
            again, told = second.communicate(timeout=60)
    assert said.startswith("sum")
    assert again == said
    assert "computes" not in again + told


def test_of_a_share_of_the_pool_no_more_is_scored(teacher, batches, scored):
    positions = np.array([3, 4, 40, 77])
    part = logits_of_part(teacher, batches, COMPUTE, positions)
    assert scored == [4]
    again = logits_of_part(teacher, batches, COMPUTE, positions)
    assert scored == [4, 4]  # compared with the teacher's predictions
    whole = teacher_logits(teacher, batches, COMPUTE)
    for asked in ([77, 3], [40]):
        np.testing.assert_allclose(part[np.array(asked)], whole[asked], rtol=1e-4, atol=1e-4)
        assert np.array_equal(part[np.array(asked)], again[np.array(asked)])


def test_of_a_share_the_whole_pools_logits_are_taken_where_they_are_there(teacher, batches, scored):
    whole = teacher_logits(teacher, batches, COMPUTE)
    scored.clear()
    part = logits_of_part(teacher, batches, COMPUTE, np.array([5, 60]))
    assert scored == [COMPARED]
    assert np.array_equal(part[np.array([60, 5])], whole[[60, 5]])


def test_other_shares_are_other_files(teacher, batches):
    logits_of_part(teacher, batches, COMPUTE, np.array([1, 2]))
    logits_of_part(teacher, batches, COMPUTE, np.array([1, 2, 9]))
    assert len(files(batches)) == 2
