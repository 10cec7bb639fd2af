"""Requests to stop: Ctrl-C, a scheduler (SIGTERM), a SLURM job before its requeue (SIGUSR1)."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from kd3 import console
from kd3.errors import EXIT_INTERRUPTED, EXIT_TERMINATED

# Windows has no SIGUSR1.
BY_MACHINE = tuple(number for name in ("SIGTERM", "SIGUSR1") if (number := getattr(signal, name, None)) is not None)
WITH_PARENT = "KD3_END_WITH_PARENT"
PARENT_SECONDS = 0.5
SECONDS_TO_END = 1.0  # that an interrupted command has to close its files
ONE_REQUEST_SECONDS = 1.0  # a scheduler may send the same request twice: to a process and to its group

_unhurried = 0


class Terminated(KeyboardInterrupt):
    """Something other than the user's keyboard asked this process to end; its work can be gone on with."""


class Stopped(KeyboardInterrupt):
    """The run was asked to stop and is at a point where a checkpoint can be written."""


class StopRequest:
    """Remembers that someone asked the run to stop, and who."""

    def __init__(self) -> None:
        self.requested = False
        self.by_machine = False

    def check(self) -> None:
        """Raise Stopped if a stop was requested; call where stopping is safe."""
        if self.requested:
            raise Stopped

    def interruption(self, words: str) -> KeyboardInterrupt:
        """Return the exception that ends the process."""
        return Terminated(words) if self.by_machine else KeyboardInterrupt(words)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGUSR1 raise Terminated, as Ctrl-C raises KeyboardInterrupt, so that work is closed properly."""

    def end(_: int, __: FrameType | None) -> None:
        raise Terminated

    with _handled(BY_MACHINE, end), _in_time():
        yield


@contextmanager
def unhurried() -> Iterator[None]:
    """Within, a signal may take its time: others, or a step and its checkpoint, are waited for."""
    global _unhurried
    _unhurried += 1
    try:
        yield
    finally:
        _unhurried -= 1


@contextmanager
def _in_time() -> Iterator[None]:
    """End the process where a signal has not ended the block in time, whatever it waits for.

    Python's own handlers run between two of its steps: not while the main thread waits within a library for a network
    that says nothing, nor do they end the threads that wait there. What kd3 writes stands a kill at any moment.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    over = threading.Event()

    def watch() -> None:
        with open(reader, "rb", buffering=0) as signals:
            while number := signals.read(1):
                if number[0] not in (signal.SIGINT, *BY_MACHINE) or _unhurried:
                    continue
                if not over.wait(SECONDS_TO_END) and not _unhurried:
                    console.fail("interrupted")
                    leave(EXIT_TERMINATED if number[0] in BY_MACHINE else EXIT_INTERRUPTED)

    threading.Thread(target=watch, name="kd3-signals", daemon=True).start()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        os.close(writer)


def leave(status: int) -> None:
    """End this process now: no thread that waits for a network is waited for."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


@contextmanager
def stopping_between_steps() -> Iterator[StopRequest]:
    """Turn the first signal into a request; a second one, a second later or more, interrupts at once.

    Outside the main thread signals are left alone.
    """
    stop = StopRequest()
    asked_at = 0.0

    def ask(number: int, _: FrameType | None) -> None:
        nonlocal asked_at
        if stop.requested and time.monotonic() - asked_at >= ONE_REQUEST_SECONDS:
            raise stop.interruption("interrupted inside a step")
        if not stop.requested:
            stop.requested, stop.by_machine, asked_at = True, number in BY_MACHINE, time.monotonic()
            console.say("stopping after this step, with a checkpoint; a second signal stops at once")

    with _handled((signal.SIGINT, *BY_MACHINE), ask), unhurried():
        yield stop


def end_with_parent() -> None:
    """If whoever started this process asked for it (`WITH_PARENT` in the environment), stop when that one is gone.

    A study that is killed outright cannot tell its runs; they would hold their folders against the next attempt.

    Raises:
        Terminated: it is gone already.
    """
    parent = os.environ.pop(WITH_PARENT, None)  # not for processes that this one starts
    if parent is None:
        return
    if parent != str(os.getppid()):
        raise Terminated("whoever started this is gone")

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(PARENT_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="kd3-parent", daemon=True).start()


@contextmanager
def _handled(numbers: Sequence[int], handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
