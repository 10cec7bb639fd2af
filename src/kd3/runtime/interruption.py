"""Ends of processes: requests to stop (Ctrl-C, SIGTERM, SIGUSR1 before a requeue), and helpers that end with their
parent.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from kd3.runtime import console
from kd3.runtime.errors import EXIT_INTERRUPTED, EXIT_TERMINATED

# Windows has no SIGUSR1.
BY_MACHINE = tuple(number for name in ("SIGTERM", "SIGUSR1") if (number := getattr(signal, name, None)) is not None)
WITH_PARENT = "KD3_END_WITH_PARENT"
PARENT_SECONDS = 0.5
SECONDS_TO_END = 1.0  # for an interrupted command to close its files
ONE_REQUEST_SECONDS = 1.0  # a scheduler may send the same request twice: to a process and to its group

_unhurried = 0


class Terminated(KeyboardInterrupt):
    """The process was asked to end, not by the keyboard; its work can be resumed."""


class Stopped(KeyboardInterrupt):
    """The run was asked to stop, and a checkpoint can be written now."""


class StopRequest:
    """A recorded request to stop, and its origin."""

    def __init__(self) -> None:
        self.requested = False
        self.by_machine = False

    def check(self) -> None:
        """Raise Stopped if a stop was requested; call it where stopping is safe."""
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
    """Give a signal more time within the context, for other processes or a step and its checkpoint."""
    global _unhurried
    _unhurried += 1
    try:
        yield
    finally:
        _unhurried -= 1


@contextmanager
def _in_time() -> Iterator[None]:
    """End the process if a signal does not end the block in time.

    Python runs its handlers between bytecodes only: not while the main thread waits in a library for a silent network.
    They do not end other waiting threads either. All files that kd3 writes survive a kill at any moment.
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
    """End this process now, without waiting for threads that wait for a network."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


@contextmanager
def stopping_between_steps() -> Iterator[StopRequest]:
    """Turn the first signal into a request; a second one, at least a second later, interrupts at once.

    Outside the main thread, signals are not handled.
    """
    stop = StopRequest()
    asked_at = 0.0

    def ask(number: int, _: FrameType | None) -> None:
        nonlocal asked_at
        if stop.requested and time.monotonic() - asked_at >= ONE_REQUEST_SECONDS:
            raise stop.interruption("interrupted inside a step")
        if not stop.requested:
            stop.requested, stop.by_machine, asked_at = True, number in BY_MACHINE, time.monotonic()
            console.info("stopping after this step, with a checkpoint; a second signal stops at once")

    with _handled((signal.SIGINT, *BY_MACHINE), ask), unhurried():
        yield stop


def end_with_parent() -> None:
    """Stop when the parent process is gone, if it asked for that (`WITH_PARENT` in the environment).

    A killed study cannot notify its runs, which would keep their folders locked against the next attempt.

    Raises:
        Terminated: the parent is gone already.
    """
    parent = os.environ.pop(WITH_PARENT, None)  # not inherited by child processes
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


PARENT_CHECK_SECONDS = 1.0


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
