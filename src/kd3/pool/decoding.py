"""Decode many files in worker processes, in order, in constant memory; a deadly file costs itself alone."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from typing import Any

from kd3.pool.decode import Decoded, DecodeSettings, Rejected, decode
from kd3.pool.record import Record, Unreadable

CHUNK = 64  # files in one message to a worker
FEW = 256  # files not worth starting processes for
CHUNKS_AHEAD = 4  # per worker


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a record."""

    record: Record
    result: Decoded | Rejected


def decode_records(
    records: Iterable[Record], settings: DecodeSettings, *, workers: int | None = None
) -> Iterator[Outcome]:
    """Yield the outcome of each record, in order.

    `workers` None takes one process per usable core; 0, or few records, decodes in this process.
    At most a few chunks are in flight, however many records there are. A file at which a decoder
    dies is rejected as "decoder crashed"; the others go on in fresh processes.
    """
    source = iter(records)
    if workers is None:
        workers = usable_cores()
    first = list(islice(source, FEW))
    if workers == 0 or len(first) < FEW:
        for record in _chain(first, source):
            yield Outcome(record, read_and_decode(record, settings))
        return
    yield from _in_processes(_chunks(_chain(first, source)), settings, workers)


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_and_decode(record: Record, settings: DecodeSettings) -> Decoded | Rejected:
    """Return what becomes of one record, in this process."""
    try:
        return decode(record.location.read(), settings)
    except Unreadable as problem:
        return Rejected(problem.reason, problem.detail)
    except OSError as problem:
        return Rejected("unreadable", problem.strerror or str(problem))


def _chain(first: list[Record], rest: Iterator[Record]) -> Iterator[Record]:
    yield from first
    yield from rest


def _chunks(records: Iterator[Record]) -> Iterator[list[Record]]:
    while chunk := list(islice(records, CHUNK)):
        yield chunk


def _in_processes(chunks: Iterator[list[Record]], settings: DecodeSettings, workers: int) -> Iterator[Outcome]:
    flight: deque[tuple[list[Record], Future[list[Decoded | Rejected]]]] = deque()
    executor = _executor(workers)
    try:
        exhausted = False
        while not exhausted or flight:
            while not exhausted and len(flight) < CHUNKS_AHEAD * workers:
                chunk = next(chunks, None)
                if chunk is None:
                    exhausted = True
                else:
                    flight.append((chunk, executor.submit(_decode_chunk, chunk, settings)))
            if not flight:
                return
            chunk, future = flight.popleft()
            try:
                results = future.result()
            except BrokenProcessPool:
                # Any chunk in flight may hold the culprit: each goes on alone.
                pending = [chunk, *(other for other, _ in flight)]
                flight.clear()
                for one in pending:
                    yield from _one_by_one(one, settings)
                executor = _executor(workers)
                continue
            for record, result in zip(chunk, results, strict=True):
                yield Outcome(record, result)
    finally:
        executor.shutdown(wait=True, kill_workers=True)


def _one_by_one(chunk: list[Record], settings: DecodeSettings) -> Iterator[Outcome]:
    executor = _executor(1)
    try:
        for record in chunk:
            try:
                result = executor.submit(_decode_chunk, [record], settings).result()[0]
            except BrokenProcessPool:
                result = Rejected("decoder crashed")
                executor = _executor(1)
            yield Outcome(record, result)
    finally:
        executor.shutdown(wait=True, kill_workers=True)


def _executor(workers: int) -> Any:
    # loky starts clean processes and, unlike multiprocessing, does not import the caller's main
    # module in them: users' scripts need no `if __name__ == "__main__"`.
    import loky

    return loky.ProcessPoolExecutor(workers, initializer=_prepare_worker)


def _prepare_worker() -> None:
    from PIL import Image

    # Ctrl-C goes to the whole group; the parent decides. The pixel limit is ours, before decoding.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Image.MAX_IMAGE_PIXELS = None


def _decode_chunk(chunk: list[Record], settings: DecodeSettings) -> list[Decoded | Rejected]:
    return [read_and_decode(record, settings) for record in chunk]
