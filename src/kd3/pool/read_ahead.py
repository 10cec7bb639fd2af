"""Prefetching of remote files during decoding; local files are read in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from kd3.pool.record import Location
from kd3.pool.remote import Remote

AT_ONCE = 16  # requests of one process: a distant server takes tens of milliseconds, decoding one

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Coming:
    """Bytes that are on their way."""

    future: Future[bytes]

    def read(self) -> bytes:
        return self.future.result()


def read_ahead(items: Iterable[T], location_of: Callable[[T], Location]) -> Iterator[tuple[T, Location]]:
    """Yield each item in order, with its location; remote ones are prefetched, a few at once."""
    threads: ThreadPoolExecutor | None = None
    waiting: deque[tuple[T, Location]] = deque()
    try:
        for item in items:
            location = location_of(item)
            if isinstance(location, Remote):
                threads = threads or ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fetch")
                location = _Coming(threads.submit(location.read))
            waiting.append((item, location))
            if threads is None or len(waiting) > AT_ONCE:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)  # one may be waiting for a silent server
