"""Batches of a pool on the device: random numbers by place, the held-out part, copies without a wait, reading ahead."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kd3.pool import ImagePool
from kd3.runtime.compute import Compute
from kd3.runtime.errors import KD3Error


def seed_for(seed: int, *place: int | str) -> int:
    """Return a seed for one place of a run, such as ("step", 17); the same on every machine."""
    digest = hashlib.blake2b(repr((seed, *place)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(device: torch.device, seed: int, *place: int | str) -> torch.Generator:
    """Return a generator seeded for one place of a run."""
    return torch.Generator(device).manual_seed(seed_for(seed, *place))


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to the device; for an accelerator, through PyTorch's page-locked memory.

    A copy from pageable memory waits for the device.
    """
    if device.type != "cuda" or values.device.type == "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


class Coming:
    """A tensor on its way to the host.

    Args:
        values: on any device; host tensors are not copied.
    """

    def __init__(self, values: Tensor) -> None:
        self._values, self._event = values, None
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    @property
    def is_here(self) -> bool:
        """Whether it has arrived."""
        return self._event is None or self._event.query()  # type: ignore[no-untyped-call]

    def get(self) -> Tensor:
        """Wait for the tensor, and return it on the host."""
        if self._event is not None:
            self._event.synchronize()
        return self._values


def fetched(parts: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield tensors on the host in order, each while the next one is computed."""
    before: Coming | None = None
    for part in parts:
        coming = Coming(part)
        if before is not None:
            yield before.get()
        before = coming
    if before is not None:
        yield before.get()


HOLDOUT_SHARE = 0.1


@dataclass(frozen=True)
class PoolSplit:
    """Positions in the pool, both ascending."""

    train: np.ndarray  # (N,) int64
    holdout: np.ndarray  # (M,) int64


def split_pool(pool: ImagePool, holdout: int, *, share: float = 1.0) -> PoolSplit:
    """Return the split of a pool: at most a tenth is held out, and a random share of the rest is for training.

    It depends on the pool alone, not on the run's seed, so that runs compare on the same images; a smaller share is a
    subset of a larger one.

    Raises:
        KD3Error: the pool, or the share of it, is too small.
    """
    count = min(holdout, int(len(pool) * HOLDOUT_SHARE))
    if count < 2:
        raise KD3Error(f"the pool {pool.path or ''} holds only {len(pool)} images; at least 20 are needed")
    generator = np.random.Generator(np.random.PCG64(seed_for(0, "holdout", pool.content_hash)))
    order = generator.permutation(len(pool))
    train = order[count:][: round(share * (len(pool) - count))]
    if len(train) < 2:
        raise KD3Error(f"a share of {share:g} of the pool {pool.path or ''} leaves {len(train)} images to train on")
    return PoolSplit(train=np.sort(train), holdout=np.sort(order[:count]))


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
        self._fits = is_gpu and _pool_bytes(pool) <= RESIDENT_SHARE * free_bytes(compute.device)
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


def free_bytes(device: torch.device) -> int:
    """Return the free memory of an accelerator, in bytes."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free)


def _copied(pool: ImagePool, device: torch.device) -> Tensor:
    images = torch.empty(len(pool), 3, pool.image_size, pool.image_size, dtype=torch.uint8, device=device)
    for start in range(0, len(pool), COPY_IMAGES):
        part = torch.from_numpy(pool.read(slice(start, start + COPY_IMAGES)))
        images[start : start + len(part)] = sent(part, device)
    return images
