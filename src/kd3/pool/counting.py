"""Background count of a crawl's files, so that the progress bar can show the remaining time."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kd3.console import Progress
from kd3.pool.sources import counts

PATIENCE = 2.0  # seconds


@contextmanager
def count_in_background(
    sources: Sequence[str], limit: int | None, bar: Progress, part: tuple[int, int] | None = None
) -> Iterator[None]:
    """Set the bar's total once the files have been counted.

    Counting a compressed tar would need unpacking; with one among the sources the total stays unknown.
    """
    stop = threading.Event()
    thread = threading.Thread(target=_count, args=(sources, part, limit, bar, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(1.0)  # it may be waiting for a silent server


def _count(
    sources: Sequence[str], part: tuple[int, int] | None, limit: int | None, bar: Progress, stop: threading.Event
) -> None:
    total = 0
    if stop.wait(PATIENCE):  # short work needs no estimate
        return
    try:
        for count in counts(sources, part, given_up=stop.is_set):
            if stop.is_set() or count is None:
                return
            total += count
    except Exception:
        return  # errors are reported where the files are read
    if not stop.is_set():
        bar.set_total(min(total, limit or total))
