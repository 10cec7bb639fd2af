"""Decode many files in worker processes, in order, in constant memory; a deadly file costs itself alone."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from kd3.pool.decode import Decoded, DecodeSettings, Rejected, decode
from kd3.pool.record import InMemory, Record, Unreadable

CHUNK = 64  # files in one message to a worker
CHUNK_BYTES = 8 << 20  # of contents that travel with the records, or of pixels that come back
FEW_CHUNKS = 4  # fewer than this are not worth starting processes for
CHUNKS_AHEAD = 4  # per worker
PARENT_CHECK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a record."""

    record: Record
    result: Decoded | Rejected


def decode_records(
    records: Iterable[Record], settings: DecodeSettings, *, workers: int | None = None
) -> Generator[Outcome, None, None]:
    """Yield the outcome of each record, in order.

    `workers` None takes one process per usable core; 0, or few records, decodes in this process.
    At most a few chunks are in flight, however many records there are. A file at which a decoder
    dies is rejected as "decoder crashed"; the others go on in fresh processes.
    """
    workers = usable_cores() if workers is None else workers
    chunks = _chunks(iter(records), max(1, min(CHUNK, CHUNK_BYTES // (3 * settings.image_size**2))))
    first = list(islice(chunks, FEW_CHUNKS))
    if workers == 0 or len(first) < FEW_CHUNKS:
        for record in chain.from_iterable(chain(first, chunks)):
            yield Outcome(record, read_and_decode(record, settings))
    else:
        yield from _in_processes(chain(first, chunks), settings, workers)


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


def _chunks(records: Iterator[Record], most: int = CHUNK) -> Iterator[list[Record]]:
    """Cut records into chunks of a number that is worth a message and of bounded bytes."""
    chunk: list[Record] = []
    payload = 0
    for record in records:
        chunk.append(record)
        if isinstance(record.location, InMemory):
            payload += len(record.location.data)
        if len(chunk) == most or payload >= CHUNK_BYTES:
            yield chunk
            chunk, payload = [], 0
    if chunk:
        yield chunk


def _in_processes(chunks: Iterator[list[Record]], settings: DecodeSettings, workers: int) -> Iterator[Outcome]:
    flight: deque[tuple[list[Record], Future[list[Decoded | Rejected]]]] = deque()
    waiting: list[Record] | None = None  # drawn from `chunks`, not yet with the workers
    executor = _executor(workers)
    try:
        while True:
            try:
                while len(flight) < CHUNKS_AHEAD * workers and (waiting := waiting or next(chunks, None)):
                    flight.append((waiting, executor.submit(_decode_chunk, waiting, settings)))
                    waiting = None
                if not flight:
                    return
                results = flight[0][1].result()
            except BrokenProcessPool:
                # Any chunk in flight may hold the culprit: each goes on alone.
                _stop(executor)
                while flight:
                    yield from _one_by_one(flight.popleft()[0], settings)
                executor = _executor(workers)
                continue
            chunk, _ = flight.popleft()
            yield from map(Outcome, chunk, results)
    finally:
        _stop(executor)


def _one_by_one(chunk: list[Record], settings: DecodeSettings) -> Iterator[Outcome]:
    executor = _executor(1)
    try:
        for record in chunk:
            result: Decoded | Rejected
            try:
                result = executor.submit(_decode_chunk, [record], settings).result()[0]
            except BrokenProcessPool as problem:
                result = Rejected("decoder crashed", type(problem).__name__)
                _stop(executor)
                executor = _executor(1)
            yield Outcome(record, result)
    finally:
        _stop(executor)


def _stop(executor: Any) -> None:
    executor.shutdown(wait=True, kill_workers=True)


def _executor(workers: int) -> Any:
    # loky starts clean processes and, unlike multiprocessing, does not import the caller's main
    # module in them: users' scripts need no `if __name__ == "__main__"`.
    import loky

    return loky.ProcessPoolExecutor(workers, initializer=_prepare_worker, initargs=(os.getpid(),))


def _prepare_worker(parent: int) -> None:
    # Ctrl-C goes to the whole group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    # A parent that is killed outright cannot stop its workers; they would wait for work for ever.
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os._exit(1)


def _decode_chunk(chunk: list[Record], settings: DecodeSettings) -> list[Decoded | Rejected]:
    return [read_and_decode(record, settings) for record in chunk]
