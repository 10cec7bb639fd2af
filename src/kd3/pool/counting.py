"""Count the files of a crawl while the first are being decoded, so that progress knows the time left."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kd3.console import Progress
from kd3.pool.sources import expand, records


@contextmanager
def count_in_background(sources: Sequence[str], limit: int | None, bar: Progress) -> Iterator[None]:
    """Tell the bar its total as soon as the listing has been counted.

    Compressed tars would have to be unpacked for it; with one among the sources the total stays unknown.
    """
    stop = threading.Event()
    thread = threading.Thread(target=_count, args=(sources, limit, bar, stop), daemon=True)
    if not any(path.lower().endswith((".gz", ".tgz", ".bz2", ".xz")) for path in expand(sources)):
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if thread.is_alive():
            thread.join()


def _count(sources: Sequence[str], limit: int | None, bar: Progress, stop: threading.Event) -> None:
    total = 0
    for _ in records(sources):
        if stop.is_set():
            return
        total += 1
        if total == limit:
            break
    bar.set_total(total)
