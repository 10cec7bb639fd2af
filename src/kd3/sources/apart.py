"""Reading of archives in a separate process, in bounded memory and time.

Large libraries read their formats, and a few bytes can demand unlimited memory or time. Then the process is ended, and
one row gives the reason; no other archive is affected. The process is reused for the next archive.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from kd3.runtime.errors import KD3Error
from kd3.runtime.interruption import bound_memory, ignore_interrupts
from kd3.sources.containers import Limits
from kd3.sources.record import InMemory, Label, Location, Record, Unusable
from kd3.sources.trust import trust, trust_for_good

AT_ONCE = 64  # files in a message
BYTES_AT_ONCE = 4 << 20  # of their contents
ALIVE_SECONDS = 1.0  # between messages of a live process
START_SECONDS = 300.0  # to start, even on a busy machine
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "ARROW_DEFAULT_MEMORY_POOL": "system"}
START = """
import sys
sys.path[:0] = [sys.argv[1]]
from kd3.sources import apart
parent = apart.connected(*map(int, sys.argv[2:]))
from kd3.sources.finding import ARCHIVES
apart.serve(parent, ARCHIVES)
"""
# Kinds of messages: files, still working, end, or a KD3Error in words.
FILES, ALIVE, END, ERROR = "files", "alive", "end", "error"

_spare: list[_Opener] = []
_lock = threading.Lock()


def members(
    kind: str, path: str, source: str, prefix: str, limits: Limits, *, at_most: int | None = None
) -> Iterator[Record]:
    """Yield the records of an archive, or the first ones, as its reader gives them.

    An archive that exceeds the limits gives one last record with the reason.

    Raises:
        KD3Error: a package is missing, or no process can be started.
    """
    opener = _taken()
    found: Unusable | None = None
    try:
        opener.ask((kind, path, limits.memory, trust(), source, prefix, limits.most(path), at_most))
        while (message := opener.answer(limits.patience(path)))[0] != END:
            if message[0] == ERROR:
                raise KD3Error(message[1])
            if message[0] == FILES:
                for parts in message[1]:
                    yield Record(*parts)
    except TimeoutError:
        opener.stop()
        found = Unusable("took too long", f"it gave no file in {limits.patience(path):g} s")
    except (EOFError, OSError):
        opener.stop()
        found = Unusable(
            "archive damaged", f"reading it ended its process, as a need of more than {limits.memory >> 20} MiB does"
        )
    except BaseException:  # also when the consumer stops early
        opener.stop()
        raise
    if found is None:
        _give_back(opener)
    else:
        yield Record(source, prefix.rstrip("/") or os.path.basename(source), found)


def count(kind: str, path: str, limits: Limits, *, given_up: Callable[[], bool] = lambda: False) -> int:
    """Estimate the number of an archive's records; `given_up` is polled to cancel.

    Raises:
        Exception: the number cannot be found.
    """
    opener = _taken()
    try:
        opener.ask((kind, path, limits.memory, trust()))
        message = opener.answer(limits.patience(path), given_up)
    except BaseException:
        opener.stop()
        raise
    _give_back(opener)
    if message[0] == ERROR:
        raise KD3Error(message[1])
    return int(message[1])


class _Opener:
    """The parent's side of the process."""

    def __init__(self) -> None:
        self._here, there = multiprocessing.Pipe()
        root = str(Path(__file__).parents[2])
        command = [sys.executable, "-c", START, root, str(there.fileno()), str(os.getpid())]
        self._process = subprocess.Popen(
            command, pass_fds=[there.fileno()], stdin=subprocess.DEVNULL, env={**os.environ, **ENVIRONMENT}
        )
        there.close()
        try:
            self.answer(START_SECONDS)
        except (TimeoutError, EOFError, OSError):
            self.stop()
            raise KD3Error(
                "no process that opens archives can start: memory may be short, or kd3 was installed anew while this "
                "ran; what it wrote on its standard error says more"
            ) from None

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: tuple[Any, ...]) -> None:
        self._here.send_bytes(pickle.dumps(request))

    def answer(self, seconds: float, given_up: Callable[[], bool] = lambda: False) -> tuple[Any, ...]:
        end = time.monotonic() + seconds
        while not self._here.poll(min(ALIVE_SECONDS, max(0.0, end - time.monotonic()))):
            if given_up() or time.monotonic() >= end:
                raise TimeoutError
        message: tuple[Any, ...] = pickle.loads(self._here.recv_bytes())
        return message

    def stop(self) -> None:
        self._here.close()
        self._process.kill()
        self._process.wait()


def _taken() -> _Opener:
    with _lock:
        while _spare:
            opener = _spare.pop()
            if opener.is_alive:
                return opener
            opener.stop()
    return _Opener()


def _give_back(opener: _Opener) -> None:
    with _lock:
        _spare.append(opener)


@atexit.register
def _stop_all() -> None:
    with _lock:
        while _spare:
            _spare.pop().stop()


# The side of the process.


def connected(handle: int, parent: int) -> Connection:
    """Return the connection to the parent, which from now on ends this process alone."""
    ignore_interrupts(parent)
    return Connection(handle)


def serve(connection: Connection, readers: Mapping[str, Any]) -> None:
    """Open one archive after the other, each with the reader of its kind, until the other end is closed."""
    _send(connection, END)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a row replaces the libraries' last messages
    with suppress(EOFError, OSError):
        while True:
            kind, path, memory, trusts, *how = pickle.loads(connection.recv_bytes())
            trust_for_good(trusts)
            # An Arrow file is mapped, which takes its own size of addresses and no memory.
            bound_memory(memory + (_size(path) if kind == "arrow" else 0))
            try:
                if how:
                    _send_members(connection, readers[kind].members, path, *how)
                else:
                    _send(connection, END, readers[kind].count(path))
            except KD3Error as problem:
                _send(connection, ERROR, str(problem))
            except (EOFError, OSError):
                raise
            except Exception as problem:
                _send(connection, ERROR, f"{type(problem).__name__}: {problem}")


def _send_members(
    connection: Connection, read: Any, path: str, source: str, prefix: str, most: int, at_most: int | None
) -> None:
    batch: list[tuple[str, str, Location, Label | None]] = []
    payload = 0
    sent_at = time.monotonic()
    for given, record in enumerate(read(path, source, prefix, limit=most), 1):
        batch.append((record.source, record.key, record.location, record.label))
        held = record.location.contents if isinstance(record.location, Unusable) else record.location
        if isinstance(held, InMemory):
            payload += len(held.data)
        if given == at_most:
            break
        if len(batch) == AT_ONCE or payload >= BYTES_AT_ONCE:
            _send(connection, FILES, batch)
            batch, payload, sent_at = [], 0, time.monotonic()
        elif time.monotonic() - sent_at > ALIVE_SECONDS:
            # Not the files: before a crash, the same ones must have been sent each time.
            _send(connection, ALIVE)
            sent_at = time.monotonic()
    _send(connection, FILES, batch)
    _send(connection, END)


def _send(connection: Connection, *message: Any) -> None:
    connection.send_bytes(pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
