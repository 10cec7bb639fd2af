"""All output of kd3 for people: messages and progress on standard error, results on standard output.

Nothing else writes to a terminal. Every text passes through `kd3.runtime.text`, since names and messages come from
crawls. On a terminal progress is a live bar; in a log file it is a plain line every few seconds, so that a run in the
background can be followed with `tail -f`.
"""

from __future__ import annotations

import json
import math
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, Protocol, TextIO, TypeVar

from kd3.runtime.errors import KD3Error
from kd3.runtime.text import clean, clean_json, one_line

LOG_EVERY_SECONDS = 10.0

_quiet = False
_silent = False


def set_quiet(quiet: bool) -> None:
    """Silence messages and progress (warnings stay)."""
    global _quiet
    _quiet = quiet


def set_silent() -> None:
    """Silence warnings, too: only one of several cooperating processes reports."""
    global _quiet, _silent
    _quiet = _silent = True


def is_silent() -> bool:
    """Return whether another process reports for this one."""
    return _silent


def is_quiet() -> bool:
    """Return whether messages and progress are silenced."""
    return _quiet


Call = ParamSpec("Call")
Answer = TypeVar("Answer")


def quietable(function: Callable[Call, Answer]) -> Callable[Call, Answer]:
    """Add `quiet=True` to a public function: no messages, no progress; warnings stay."""

    @wraps(function)
    def call(*arguments: Call.args, **settings: Call.kwargs) -> Answer:
        before = _quiet
        quiet = settings.pop("quiet", before)
        if not isinstance(quiet, bool):
            raise KD3Error(f"quiet (kd3.{function.__name__}): must be True or False; got {quiet!r}")
        set_quiet(quiet)
        try:
            return function(*arguments, **settings)
        finally:
            set_quiet(before)

    return call


def info(message: str) -> None:
    """Print one informative line."""
    if not _quiet:
        _write(message)


def warn(message: str) -> None:
    """Print one line that the user should act on."""
    _write(f"warning: {message}")


def fail(message: str) -> None:
    """Print the sentence of a command that failed."""
    _put(sys.stderr, one_line(f"kd3: {message}"))


def fault() -> None:
    """Print the traceback of the current exception: a bug in kd3."""
    _put(sys.stderr, clean(traceback.format_exc().rstrip()))


def result(text: str) -> None:
    """Print a command's result in words on standard output."""
    _put(sys.stdout, clean(text))


def json_result(values: Any) -> None:
    """Print a command's result as JSON on standard output; numbers that are not finite become null.

    Python's NaN and Infinity are no JSON, and strict readers refuse the whole text.
    """
    _put(sys.stdout, clean_json(json.dumps(_finite(values), indent=2, ensure_ascii=False, allow_nan=False)))


def _finite(values: Any) -> Any:
    if isinstance(values, float):
        return values if math.isfinite(values) else None
    if isinstance(values, dict):
        return {name: _finite(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_finite(value) for value in values]
    return values


def _write(line: str) -> None:
    if not _silent:
        _put(sys.stderr, one_line(line))


def _put(stream: TextIO, text: str) -> None:
    try:
        stream.write(text + "\n")
    except UnicodeEncodeError:  # the terminal's encoding lacks a character
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


class Progress(Protocol):
    """Counts units of finished work."""

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count `amount` more finished units and show `note` beside them."""

    def set_total(self, total: int) -> None:
        """Set the total, once it is known."""


@contextmanager
def progress(title: str, total: int | None, unit: str, *, done: int = 0, hidden: bool = False) -> Iterator[Progress]:
    """Show the progress of long work, with its rate and the remaining time.

    `total` is None if it is not known in advance. `done` units were finished by an earlier, interrupted run and do not
    count towards the rate. `hidden` shows nothing.
    """
    if hidden:
        yield _Nothing()
    elif not _quiet and sys.stderr.isatty():
        with _live_bar(title, total, unit, done) as bar:
            yield bar
    else:
        lines = _LogLines(title, total, unit, done)
        yield lines
        lines.close()


class _Nothing:
    """Hidden progress."""

    def advance(self, amount: int = 1, note: str = "") -> None:
        pass

    def set_total(self, total: int) -> None:
        pass


class _LogLines:
    """Progress as plain lines."""

    def __init__(self, title: str, total: int | None, unit: str, done: int) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.start_count = self.count = done
        self.note = ""
        self.printed = -1
        self.start = self.last = time.monotonic()

    def advance(self, amount: int = 1, note: str = "") -> None:
        self.count += amount
        self.note = note or self.note
        now = time.monotonic()
        if now - self.last >= LOG_EVERY_SECONDS:
            self.last = now
            self._print(now)

    def set_total(self, total: int) -> None:
        self.total = total

    def close(self) -> None:
        if time.monotonic() - self.start >= LOG_EVERY_SECONDS and self.printed != self.count:
            self._print(time.monotonic())

    def _print(self, now: float) -> None:
        self.printed = self.count
        rate = (self.count - self.start_count) / max(now - self.start, 1e-9)
        parts = [f"{self.count:,}" + (f" of {self.total:,}" if self.total else "") + f" {self.unit}"]
        if rate > 0:
            parts.append(speed(rate))
        if self.total and rate > 0:
            parts.append(f"{clock((self.total - self.count) / rate)} left")
        if self.note:
            parts.append(self.note)
        info(f"{self.title}: " + ", ".join(parts))


@contextmanager
def _live_bar(title: str, total: int | None, unit: str, done: int) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[amount]}", markup=False),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with RichProgress(*columns, console=Console(stderr=True), refresh_per_second=5) as bar:
        task = bar.add_task(one_line(title), total=total, completed=done, amount="", note="")
        count, start = done, time.monotonic()

        class _Bar:
            def set_total(self, amount: int) -> None:
                nonlocal total
                total = amount
                bar.update(task, total=amount)

            def advance(self, amount: int = 1, note: str = "") -> None:
                nonlocal count
                count += amount
                rate = (count - done) / max(time.monotonic() - start, 1e-9)
                shown = f"{count:,}" + (f"/{total:,}" if total else "") + f" {unit}, {speed(rate)}"
                bar.update(task, completed=count, amount=shown)
                if note:
                    bar.update(task, note=one_line(note))

        yield _Bar()


def speed(rate: float) -> str:
    """Return the rate in units a second, or the time of one unit if that exceeds a second.

    >>> speed(1234.5), speed(0.01)
    ('1,234/s', '1 min 40 s each')
    """
    return f"{rate:,.0f}/s" if rate >= 1 else f"{clock(1 / max(rate, 1e-9))} each"


def clock(seconds: float) -> str:
    """Return a duration for people.

    >>> clock(7.4), clock(75), clock(3725)
    ('7 s', '1 min 15 s', '1 h 02 min')
    """
    whole = round(max(seconds, 0))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
