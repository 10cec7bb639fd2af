"""Batches of a pool on the device: resident there if it fits, otherwise prefetched by threads."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kd3.compute import Compute
from kd3.pool import ImagePool
from kd3.training.transfer import sent

RESIDENT_SHARE = 0.4  # of the accelerator's free memory that a pool may take
BATCHES_AHEAD = 3  # at first, and on a CPU always
MOST_AHEAD = 16  # of an accelerator
AHEAD_BYTES = 4 << 30  # prefetched, for any number of batches
READERS = 4  # threads that read for an accelerator; NumPy releases the GIL while copying
COPY_IMAGES = 4096  # at once, to the accelerator
SHARE = 0.2  # of a new measurement in a mean of times


class Device(Protocol):
    """Destination of batches."""

    def send(self, images: np.ndarray) -> Tensor:
        """Start copying a batch to the device; called by the reading threads."""

    def received(self, batch: Tensor) -> Tensor:
        """Return the batch, complete for all later work on the device; the host does not wait."""


class Host:
    """The CPU; nothing is copied."""

    def send(self, images: np.ndarray) -> Tensor:
        """Return the batch itself."""
        return torch.from_numpy(images)

    def received(self, batch: Tensor) -> Tensor:
        """Return the batch."""
        return batch


class Accelerator:
    """A CUDA device: batches are copied from page-locked memory on a separate stream.

    PyTorch owns this memory and reuses it once the copy has ended.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copied: dict[int, torch.cuda.Event] = {}

    def send(self, images: np.ndarray) -> Tensor:
        """Start copying."""
        locked = torch.from_numpy(images).pin_memory()
        with torch.cuda.stream(self._stream):
            batch = locked.to(self._device, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._copied[id(batch)] = event
        return batch

    def received(self, batch: Tensor) -> Tensor:
        """Make the current stream wait for the copy."""
        now = torch.cuda.current_stream(self._device)
        now.wait_event(self._copied.pop(id(batch)))
        batch.record_stream(now)  # prevents reuse of its memory before the step has read it
        return batch


class PoolBatches:
    """A pool's images in batches, on the device.

    If it fits on the accelerator, the whole pool is copied there on first use. Otherwise threads read the next batches
    from the memory map and send them during the current step, so that neither a slow disk nor a large pool delays the
    steps.
    """

    def __init__(self, pool: ImagePool, compute: Compute) -> None:
        self.pool, self.compute = pool, compute
        self._resident: Tensor | None = None
        is_gpu = compute.device.type == "cuda"
        self._fits = is_gpu and _pool_bytes(pool) <= RESIDENT_SHARE * _free_bytes(compute.device)
        self._device: Device = Accelerator(compute.device) if is_gpu else Host()

    def iterate(self, positions: np.ndarray, size: int) -> Generator[Tensor, None, None]:
        """Yield the images at these positions in order, uint8 (B, 3, S, S), `size` at a time; the last may be smaller.

        Raises:
            IndexError: a position is outside the pool.
        """
        if self._fits:
            yield from self._from_device(positions, size)
            return
        if isinstance(self._device, Host):
            ahead = read_ahead(self.pool, positions, size)
        else:
            ahead = read_ahead(self.pool, positions, size, self._device, readers=READERS, most=MOST_AHEAD)
        with closing(ahead) as batches:
            yield from batches

    def _from_device(self, positions: np.ndarray, size: int) -> Generator[Tensor, None, None]:
        if self._resident is None:
            self._resident = _copied(self.pool, self.compute.device)
        index = sent(torch.from_numpy(np.ascontiguousarray(positions, dtype=np.int64)), self.compute.device)
        for start in range(0, len(index), size):
            yield self._resident[index[start : start + size]]


class Depth:
    """Number of batches in flight, by measured rates.

    If one of n threads takes r seconds to read and send a batch, and a step takes s seconds, r / s batches must be
    under way at once. Twice as many hide single slow reads.

    Args:
        most: at most.
    """

    def __init__(self, most: int) -> None:
        self.most, self.now = most, min(BATCHES_AHEAD, most)
        self._reading: float | None = None
        self._asking: float | None = None
        self._asked_at: float | None = None

    def took(self, seconds: float) -> None:
        """Record the time to read and send a batch."""
        self._reading = seconds if self._reading is None else (1 - SHARE) * self._reading + SHARE * seconds

    def asked(self, now: float, waited: float) -> None:
        """Record the time of a request and its wait; s is the time of the step in between."""
        if self._asked_at is not None:
            step = max(now - self._asked_at, 1e-6)
            self._asking = step if self._asking is None else (1 - SHARE) * self._asking + SHARE * step
        self._asked_at = now + waited
        if self._reading is not None and self._asking is not None:
            needed = 2 * int(-(-self._reading // self._asking))
            self.now = max(min(BATCHES_AHEAD, self.most), min(self.most, needed))


def read_ahead(
    pool: ImagePool,
    positions: np.ndarray,
    size: int,
    device: Device | None = None,
    *,
    readers: int = 1,
    most: int = BATCHES_AHEAD,
) -> Generator[Tensor, None, None]:
    """Yield pool images on a device in order, `size` at a time, with a few batches prefetched.

    Closing the iterator ends the threads. Read errors are raised here.
    """
    device = device or Host()
    bytes_each = max(1, size * 3 * pool.image_size**2)
    depth = Depth(max(1, min(most, AHEAD_BYTES // bytes_each)))

    def one(places: np.ndarray) -> Tensor:
        start = time.perf_counter()
        batch = device.send(pool.read(places))
        depth.took(time.perf_counter() - start)
        return batch

    parts: Iterator[np.ndarray] = (positions[start : start + size] for start in range(0, len(positions), size))
    under_way: deque[Future[Tensor]] = deque()
    threads = ThreadPoolExecutor(readers, "kd3-read-ahead")
    try:
        while True:
            under_way.extend(
                threads.submit(one, places) for places in islice(parts, max(0, depth.now + 1 - len(under_way)))
            )
            if not under_way:
                return
            asked = time.perf_counter()
            batch = under_way.popleft().result()
            depth.asked(asked, time.perf_counter() - asked)
            under_way.extend(
                threads.submit(one, places) for places in islice(parts, max(0, depth.now - len(under_way)))
            )
            yield device.received(batch)
    finally:
        threads.shutdown(cancel_futures=True)


def _pool_bytes(pool: ImagePool) -> int:
    return len(pool) * 3 * pool.image_size**2


def _free_bytes(device: torch.device) -> int:
    free, _ = torch.cuda.mem_get_info(device)
    return int(free)


def _copied(pool: ImagePool, device: torch.device) -> Tensor:
    images = torch.empty(len(pool), 3, pool.image_size, pool.image_size, dtype=torch.uint8, device=device)
    for start in range(0, len(pool), COPY_IMAGES):
        part = torch.from_numpy(pool.read(slice(start, start + COPY_IMAGES)))
        images[start : start + len(part)] = sent(part, device)
    return images
