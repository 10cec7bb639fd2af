"""The decoding process: receives chunks of file locations and returns their pixels in one piece."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from kd3.errors import KD3Error
from kd3.pool.allowed import Trust, trust_for_good
from kd3.pool.decode import Decoded, DecodeSettings, Rejected, decode_without_limits, lift_limits_for_good
from kd3.pool.read_ahead import read_ahead
from kd3.pool.reasons import Reason
from kd3.pool.record import Location, Reader, Record, Unreadable
from kd3.pool.without_secrets import without_secrets

PARENT_CHECK_SECONDS = 1.0
ROOM_BYTES = 2 << 30  # of address space, beside the image: the chunk, its answer, the file
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
    bound_memory(ROOM_BYTES + PIXEL_BYTES * max_pixels)
    gc.freeze()  # exclude modules from garbage collection


def ignore_interrupts(parent: int) -> None:
    """Leave Ctrl-C, which goes to the whole group, to the parent; end when the parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def bound_memory(more: int) -> None:
    """Limit this process's further memory: a file that needs more fails alone, with a MemoryError."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as handle:
            now = int(handle.read().split()[0]) * resource.getpagesize()
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        wanted = now + more
        if most == resource.RLIM_INFINITY or wanted < most:
            resource.setrlimit(resource.RLIMIT_AS, (wanted, most))
    except (ImportError, OSError, ValueError):
        pass  # Linux only


def _end_with(parent: int) -> None:
    # A killed parent cannot stop its workers, which would wait for work forever.
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os._exit(1)


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
