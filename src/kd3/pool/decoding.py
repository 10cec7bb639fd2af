"""Many files decoded in worker processes, in order, in constant memory; a deadly file costs only itself."""

from __future__ import annotations

import gc
import os
import pickle
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar

import numpy as np

from kd3.pool.decode import Decoded, DecodeSettings, Rejected, decode, decode_without_limits, lift_limits_for_good
from kd3.runtime.errors import KD3Error
from kd3.runtime.interruption import bound_memory, ignore_interrupts
from kd3.sources.record import InMemory, Location, Reader, Reason, Record, Unreadable
from kd3.sources.remote import Remote
from kd3.sources.trust import Trust, trust, trust_for_good, without_secrets

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


WORKING_BYTES = 2 << 30  # of address space, beside the image: the chunk, its answer, the file
PIXEL_BYTES = 24  # of the largest image: its pixels as the file has them, in RGB and 16 bits, with alpha, turned

# Tuples, because they cost a tenth of objects on their way: of an image (sha256, digest, width, height,
# format), of a refusal (reason, detail).
Row = tuple[bytes, bytes, int, int, str] | tuple[Reason, str]
Answer = tuple[np.ndarray, list[Row]]  # pixels (kept, 3, N, N) uint8 of the images, and a row for each file


def prepare_worker(parent: int, max_pixels: int, trust: Trust) -> None:
    """Prepare this process for decoding: bounded memory, and end with the parent."""
    ignore_interrupts(parent)
    lift_limits_for_good(max_pixels)
    trust_for_good(trust)
    bound_memory(WORKING_BYTES + PIXEL_BYTES * max_pixels)
    gc.freeze()  # exclude modules from garbage collection


def question(chunk: Sequence[Record]) -> bytes:
    """Return the worker's view of the records, pickled here because loky's own pickling is slower."""
    return pickle.dumps([record.location for record in chunk], protocol=pickle.HIGHEST_PROTOCOL)


def answer(message: bytes, settings: DecodeSettings) -> Answer:
    """Decode the records of a `question`."""
    locations: list[Location] = pickle.loads(message)
    pixels = np.empty((len(locations), 3, settings.image_size, settings.image_size), dtype=np.uint8)
    rows: list[Row] = []
    kept = 0
    with Reader() as reader:
        for _, location in read_ahead(locations, lambda location: location):
            result = attempt(partial(reader.read, location), settings, decode_without_limits)
            if isinstance(result, Rejected):
                rows.append((result.reason, result.detail))
            else:
                pixels[kept] = result.pixels
                kept += 1
                rows.append((result.sha256, result.digest, result.width, result.height, result.format))
    return pixels[:kept], rows


def results(answer: Answer) -> Iterator[Decoded | Rejected]:
    """Yield the outcome of each file in an answer."""
    pixels, rows = answer
    images = iter(pixels)
    for row in rows:
        yield Rejected(*row) if len(row) == 2 else Decoded(next(images), *row)


def attempt(
    read: Callable[[], bytes],
    settings: DecodeSettings,
    decode: Callable[[bytes, DecodeSettings], Decoded | Rejected],
) -> Decoded | Rejected:
    """Return the outcome for the bytes of `read`."""
    try:
        return decode(read(), settings)
    except Unreadable as problem:
        return Rejected(problem.reason, problem.detail)
    except OSError as problem:
        return Rejected("unreadable", problem.strerror or str(problem))
    except MemoryError:
        return Rejected("unreadable", "MemoryError: it wants more memory than it may have")
    except KD3Error as problem:
        return Rejected("not installed", str(problem))
    except Exception as problem:  # a name with NUL, and other file system errors
        return Rejected("unreadable", without_secrets(f"{type(problem).__name__}: {problem}")[:200])


CHUNK = 128  # files in one message to a worker: each message costs the main process some 0.3 ms
CHUNK_BYTES = 8 << 20  # of contents that travel with the records, or of pixels that come back
CHUNK_PATIENCE = 4  # times a file's limit: then each file of a chunk is tried alone
START_SECONDS = 300  # to start a process, even on a busy machine
CULPRITS = ("decoder crashed", "took too long")
FEW_CHUNKS = 3  # fewer than this are not worth starting processes for
CHUNKS_AHEAD = 4  # per worker
BYTES_AHEAD = 128 << 20  # of contents that wait for workers, in all; one file may be larger
# glibc would give each chunk's memory back to the system and fetch it again, zeroed, for the next.
# And numpy would start threads that nothing here uses.
WORKER_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": str(2 * CHUNK_BYTES),
    "MALLOC_MMAP_THRESHOLD_": str(2 * CHUNK_BYTES),
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome for one record."""

    record: Record
    result: Decoded | Rejected


def decode_records(
    records: Iterable[Record], settings: DecodeSettings, *, workers: int | None = None, wary: bool = False
) -> Generator[Outcome, None, None]:
    """Yield the outcome of each record, in order.

    `workers` None takes one process per usable core; 0 decodes in this process, and so do few records unless `wary`.
    At most a few chunks are in flight, however many records there are. A file at which a decoder dies is rejected as
    "decoder crashed", one that takes longer than the settings allow as "took too long"; the others go on in fresh
    processes, whose memory is bounded.
    """
    workers = usable_cores() if workers is None else workers
    chunks = _chunks(iter(records), max(1, min(CHUNK, CHUNK_BYTES // (3 * settings.image_size**2))))
    first = list(islice(chunks, FEW_CHUNKS))
    if workers == 0 or (len(first) < FEW_CHUNKS and not wary):
        for record, location in read_ahead(chain.from_iterable(chain(first, chunks)), lambda record: record.location):
            coming = replace(record, location=location) if location is not record.location else record
            yield Outcome(record, read_and_decode(coming, settings))
    else:
        yield from _in_processes(chain(first, chunks), settings, workers)


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_and_decode(record: Record, settings: DecodeSettings) -> Decoded | Rejected:
    """Return the outcome of one record, in this process."""
    return attempt(record.location.read, settings, decode)


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


def _payload(chunk: Sequence[Record]) -> int:
    return sum(len(record.location.data) for record in chunk if isinstance(record.location, InMemory))


def _in_processes(chunks: Iterator[list[Record]], settings: DecodeSettings, workers: int) -> Iterator[Outcome]:
    flight: deque[tuple[list[Record], Future[Answer]]] = deque()
    bytes_ahead = 0  # in flight
    waiting: list[Record] | None = None  # drawn from `chunks`, not yet with the workers
    patience = CHUNK_PATIENCE * settings.max_seconds
    executor = _executor(workers, settings)
    try:
        while True:
            try:
                while len(flight) < CHUNKS_AHEAD * workers and (waiting := waiting or next(chunks, None)):
                    if flight and bytes_ahead + _payload(waiting) > BYTES_AHEAD:
                        break
                    flight.append((waiting, executor.submit(answer, question(waiting), settings)))
                    bytes_ahead += _payload(waiting)
                    waiting = None
                if not flight:
                    return
                answered = flight[0][1].result(patience)
            except (BrokenProcessPool, TimeoutError) as problem:
                # Any chunk in flight may hold the culprit: each goes on alone.
                _stop(executor)
                found = False
                while flight:
                    for outcome in _one_by_one(flight.popleft()[0], settings):
                        found = found or (isinstance(outcome.result, Rejected) and outcome.result.reason in CULPRITS)
                        yield outcome
                if isinstance(problem, TimeoutError) and not found:
                    patience *= 2  # honest files, only many slow ones
                executor, bytes_ahead = _executor(workers, settings), 0
                continue
            chunk, _ = flight.popleft()
            bytes_ahead -= _payload(chunk)
            yield from map(Outcome, chunk, results(answered))
    finally:
        _stop(executor)


def _one_by_one(chunk: list[Record], settings: DecodeSettings) -> Iterator[Outcome]:
    executor = _started(settings)
    try:
        for record in chunk:
            result: Decoded | Rejected
            try:
                (result,) = results(executor.submit(answer, question([record]), settings).result(settings.max_seconds))
            except (BrokenProcessPool, TimeoutError) as problem:
                result = Rejected("decoder crashed", type(problem).__name__)
                if isinstance(problem, TimeoutError):
                    result = Rejected("took too long", f"more than {settings.max_seconds:g} s")
                _stop(executor)
                executor = _started(settings)
            yield Outcome(record, result)
    finally:
        _stop(executor)


def _started(settings: DecodeSettings) -> Any:
    """Return one process that is ready: its start is not its first file's time, nor its failure that file's fault."""
    executor = _executor(1, settings)
    try:
        executor.submit(answer, question([]), settings).result(START_SECONDS)
    except (BrokenProcessPool, TimeoutError):
        _stop(executor)
        raise KD3Error(
            "no process that decodes images can start: memory may be short, or kd3 was installed anew while this ran; "
            "what it wrote on its standard error says more"
        ) from None
    return executor


def _stop(executor: Any) -> None:
    executor.shutdown(wait=True, kill_workers=True)


def _executor(workers: int, settings: DecodeSettings) -> Any:
    # loky starts clean processes and, unlike multiprocessing, does not import the caller's main
    # module in them: users' scripts need no `if __name__ == "__main__"`.
    import loky

    arguments = (os.getpid(), settings.max_pixels, trust())
    return loky.ProcessPoolExecutor(workers, initializer=prepare_worker, initargs=arguments, env=WORKER_ENVIRONMENT)
