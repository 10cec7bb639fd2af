"""Batches of a pool: in order, ahead of their use, and no thread left behind."""

import threading
import time

import numpy as np
import pytest
import torch

import kd3
from kd3.runtime.compute import resolve
from kd3.scoring import batches as pool_batches
from kd3.scoring.batches import Depth, Host, PoolBatches, read_ahead


@pytest.fixture
def pool():
    draw = np.random.default_rng(0)
    return kd3.ImagePool.from_array(draw.integers(0, 256, (50, 3, 8, 8), dtype=np.uint8))


def readers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("kd3-read-ahead")]


@pytest.mark.parametrize("size", [1, 7, 50, 64])
def test_the_images_come_in_order_and_none_is_lost(pool, size):
    positions = np.random.default_rng(1).permutation(50)[:37]
    batches = list(PoolBatches(pool, resolve("cpu", "32")).iterate(positions, size))
    assert [len(batch) for batch in batches] == [min(size, 37 - start) for start in range(0, 37, size)]
    assert torch.equal(torch.cat(batches), torch.from_numpy(pool.read(positions)))
    assert readers() == []


def test_a_pool_on_the_device_gives_the_same(pool, monkeypatch):
    compute = resolve("cpu", "32")
    batches = PoolBatches(pool, compute)
    monkeypatch.setattr(batches, "_fits", True)
    monkeypatch.setattr(pool_batches, "COPY_IMAGES", 16)
    positions = np.random.default_rng(1).permutation(50)
    there = torch.cat(list(batches.iterate(positions, 7)))
    assert torch.equal(there, torch.from_numpy(pool.read(positions)))


def test_no_images_are_no_batches(pool):
    assert list(PoolBatches(pool, resolve("cpu", "32")).iterate(np.arange(0), 4)) == []


def test_three_batches_are_read_before_they_are_asked_for_and_no_more(pool, monkeypatch):
    read = []
    real = pool.read
    monkeypatch.setattr(pool, "read", lambda positions: read.append(len(positions)) or real(positions))
    batches = read_ahead(pool, np.arange(50), 5)
    next(batches)
    deadline = time.monotonic() + 5
    while len(read) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(read) == 4  # one taken, three waiting
    batches.close()
    assert readers() == []
    assert len(read) <= 6


def test_what_goes_wrong_while_reading_is_told_where_it_is_asked_for(pool):
    with pytest.raises(IndexError, match="image 50"):
        list(read_ahead(pool, np.array([1, 50]), 1))
    assert readers() == []


class SlowCopies(Host):
    """A device to which every batch takes a while, however many are copied at once."""

    def __init__(self, seconds):
        self.seconds, self.sent, self.at_once, self.most = seconds, 0, 0, 0
        self.lock = threading.Lock()

    def send(self, images):
        with self.lock:
            self.sent, self.at_once = self.sent + 1, self.at_once + 1
            self.most = max(self.most, self.at_once)
        time.sleep(self.seconds)
        with self.lock:
            self.at_once -= 1
        return super().send(images)


def test_several_readers_hide_copies_that_take_longer_than_a_step(pool):
    step, copy, batches = 0.02, 0.05, 40
    device = SlowCopies(copy)
    positions = np.tile(np.arange(50), 4)
    start = time.perf_counter()
    found = []
    for batch in read_ahead(pool, positions, 5, device, readers=4, most=16):
        time.sleep(step)
        found.append(batch)
    seconds = time.perf_counter() - start
    assert torch.equal(torch.cat(found), torch.from_numpy(pool.read(positions)))
    assert device.most > 2
    assert seconds < 0.75 * batches * copy  # one reader could not have done it
    assert readers() == []


def test_as_many_batches_are_under_way_as_the_rates_want():
    depth, now = Depth(16), 0.0
    for _ in range(30):
        depth.took(0.4)
        depth.asked(now, 0.0)
        now += 0.1
    assert depth.now == 8  # four steps long, and as many again
    for _ in range(60):
        depth.took(0.01)
        depth.asked(now, 0.0)
        now += 0.1
    assert depth.now == 3
    for _ in range(60):
        depth.took(9.0)
        depth.asked(now, 0.0)
        now += 0.1
    assert depth.now == 16
