"""Batches of a pool on the device: held there where it fits, else read ahead by a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator
from contextlib import closing, suppress

import numpy as np
import torch
from torch import Tensor

from kd3.compute import Compute
from kd3.pool import ImagePool

RESIDENT_SHARE = 0.4  # of the accelerator's free memory that a pool may take
BATCHES_AHEAD = 3
COPY_IMAGES = 4096  # at once, to the accelerator


class PoolBatches:
    """A pool's images, batch by batch, where they are needed.

    On an accelerator with room for it the whole pool is copied there, at its first use. Else a
    thread reads the coming batches from the memory map while the present one is computed with, so
    that a pool on a slow disk does not hold up the steps.
    """

    def __init__(self, pool: ImagePool, compute: Compute) -> None:
        self.pool, self.compute = pool, compute
        self._resident: Tensor | None = None
        self._fits = compute.device.type == "cuda" and _pool_bytes(pool) <= RESIDENT_SHARE * _free_bytes(compute.device)

    def iterate(self, positions: np.ndarray, size: int) -> Generator[Tensor, None, None]:
        """Yield the images at these positions in order, uint8 (B, 3, S, S), `size` at a time; the last may be fewer.

        Raises:
            IndexError: a position is outside the pool.
        """
        if self._fits:
            yield from self._from_device(positions, size)
        else:
            with closing(read_ahead(self.pool, positions, size)) as batches:
                for images in batches:
                    yield self._sent(images)

    def _from_device(self, positions: np.ndarray, size: int) -> Generator[Tensor, None, None]:
        if self._resident is None:
            self._resident = _copied(self.pool, self.compute.device)
        index = torch.from_numpy(np.ascontiguousarray(positions, dtype=np.int64)).to(self.compute.device)
        for start in range(0, len(index), size):
            yield self._resident[index[start : start + size]]

    def _sent(self, images: np.ndarray) -> Tensor:
        batch = torch.from_numpy(images)
        if self.compute.device.type == "cuda":
            return batch.pin_memory().to(self.compute.device, non_blocking=True)
        return batch


def read_ahead(pool: ImagePool, positions: np.ndarray, size: int) -> Generator[np.ndarray, None, None]:
    """Yield pool images in order, `size` at a time, up to three batches read before they are asked for.

    Closing the iterator ends the thread. What goes wrong while reading is raised here.
    """
    ready: queue.Queue[np.ndarray | BaseException | None] = queue.Queue(BATCHES_AHEAD)
    stop = threading.Event()
    thread = threading.Thread(
        target=_read, args=(pool, positions, size, ready, stop), name="kd3-read-ahead", daemon=True
    )
    thread.start()
    try:
        while (got := ready.get()) is not None:
            if isinstance(got, BaseException):
                raise got
            yield got
    finally:
        stop.set()
        while thread.is_alive():
            with suppress(queue.Empty):
                ready.get(timeout=0.01)  # room for a batch that the thread still wants to hand over
        thread.join()


def _read(
    pool: ImagePool,
    positions: np.ndarray,
    size: int,
    ready: queue.Queue[np.ndarray | BaseException | None],
    stop: threading.Event,
) -> None:
    try:
        for start in range(0, len(positions), size):
            if stop.is_set():
                return
            ready.put(pool.read(positions[start : start + size]))
        ready.put(None)
    except BaseException as problem:
        ready.put(problem)


def _pool_bytes(pool: ImagePool) -> int:
    return len(pool) * 3 * pool.image_size**2


def _free_bytes(device: torch.device) -> int:
    free, _ = torch.cuda.mem_get_info(device)
    return int(free)


def _copied(pool: ImagePool, device: torch.device) -> Tensor:
    images = torch.empty(len(pool), 3, pool.image_size, pool.image_size, dtype=torch.uint8, device=device)
    for start in range(0, len(pool), COPY_IMAGES):
        part = torch.from_numpy(pool.read(slice(start, start + COPY_IMAGES)))
        images[start : start + len(part)] = part.to(device)
    return images
