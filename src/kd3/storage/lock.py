"""One process at a time in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from kd3 import console
from kd3.errors import KD3Error


@contextmanager
def exclusive(path: Path, *, what: str) -> Iterator[None]:
    """Hold a lock file; the system releases it at any end of the process.

    Raises:
        KD3Error: another process holds it.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise KD3Error(f"another process is at work on {what}; wait for it or choose another --out") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def waiting(path: Path, *, what: str) -> Iterator[None]:
    """Wait for a lock file and hold it.

    Raises:
        OSError: the lock file cannot be made.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        console.say(f"another process is at work on {what}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
