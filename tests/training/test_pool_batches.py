"""Batches of a pool: in order, ahead of their use, and no thread left behind."""

import threading
import time

import numpy as np
import pytest
import torch

import kd3
from kd3.compute import resolve
from kd3.training import pool_batches
from kd3.training.pool_batches import PoolBatches, read_ahead


@pytest.fixture
def pool():
    draw = np.random.default_rng(0)
    return kd3.ImagePool.from_array(draw.integers(0, 256, (50, 3, 8, 8), dtype=np.uint8))


def readers():
    return [thread for thread in threading.enumerate() if thread.name == "kd3-read-ahead"]


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
    while len(read) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(read) == 5  # one taken, three waiting, one at the door
    batches.close()
    assert readers() == []
    assert len(read) <= 6


def test_what_goes_wrong_while_reading_is_told_where_it_is_asked_for(pool):
    with pytest.raises(IndexError, match="image 50"):
        list(read_ahead(pool, np.array([1, 50]), 1))
    assert readers() == []
