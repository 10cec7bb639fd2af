"""Progress through the sources: the position of an ingest, from which it can continue."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from kd3.pool.limits import Limits
from kd3.pool.record import Record, Unusable
from kd3.pool.sources import DEFAULT, contents, find_part


class Place(NamedTuple):
    """A position in the sources: finished files and archives, and finished records of the next one."""

    found: int = 0
    inside: int = 0


class Course:
    """The sources' records from a position on.

    Archives before it are not opened again, and may be gone. Records are drawn ahead of their processing; `place`
    follows the processing. With `part` (I, N) it is the I-th of N parts.
    """

    def __init__(
        self, sources: Sequence[str], start: Place, part: tuple[int, int] | None = None, limits: Limits = DEFAULT
    ) -> None:
        self._sources, self._start, self._part, self._limits = sources, start, part, limits
        self._begun: deque[tuple[int, int]] = deque()  # (records before it, its number) of files and archives
        self._last = (-start.inside, start.found)

    def __iter__(self) -> Iterator[Record]:
        drawn = 0
        ahead = islice(find_part(self._sources, self._part), self._start.found, None)
        for number, found in enumerate(ahead, self._start.found):
            members = contents(found, self._limits)
            if number == self._start.found:
                members = _after(members, self._start.inside)
            else:
                self._begun.append((drawn, number))
            for record in members:
                drawn += 1
                yield record

    def place(self, done: int) -> Place:
        """Return the position after the first `done` records; `done` must not decrease between calls."""
        while self._begun and self._begun[0][0] <= done:
            self._last = self._begun.popleft()
        before, number = self._last
        return Place(number, done - before)


def _after(members: Iterator[Record], count: int) -> Iterator[Record]:
    """Skip `count` records and yield the others; if the archive is shorter, yield its final error record."""
    number, last = 0, None
    for number, last in enumerate(members, 1):
        if number > count:
            yield last
    if last is not None and number < count and isinstance(last.location, Unusable):
        yield last
