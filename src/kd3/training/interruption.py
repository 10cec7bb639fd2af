"""Ctrl-C and SIGTERM stop a run between two steps, not inside one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from kd3 import console

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """The run was asked to stop and is at a point where a checkpoint can be written."""


class StopRequest:
    """Remembers that someone asked the run to stop."""

    def __init__(self) -> None:
        self.requested = False

    def check(self) -> None:
        """Raise Stopped if a stop was requested; call where stopping is safe."""
        if self.requested:
            raise Stopped


@contextmanager
def stopping_between_steps() -> Iterator[StopRequest]:
    """Turn the first signal into a request; a second one interrupts at once.

    Outside the main thread signals are left alone.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(_: int, __: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        console.say("stopping after this step, with a checkpoint; once more stops at once")

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
