"""Limits for an archive of a crawl. Free of archive readers."""

from __future__ import annotations

import os
from dataclasses import dataclass

from kd3.pool.allowed import is_remote

MEMORY = 2 << 30  # bytes of address space for opening one, in addition to the process's initial size
REMOTE_SECONDS = 3600.0  # without a file of a remote archive, which may need a full download first
LEAST_UNPACKED = 4 << 30  # bytes
TIMES_ITS_SIZE = 50  # images hardly shrink; arrays of drawings may, by some tens
REMOTE_UNPACKED = 1 << 40


@dataclass(frozen=True, slots=True)
class Limits:
    """The budget of one archive: seconds without a file of it, bytes that all its files may have, memory to open it."""

    seconds: float = 60.0
    unpacked: int | None = None  # None: a multiple of its own size
    memory: int = MEMORY

    def patience(self, path: str) -> float:
        """Return how many seconds the archive may take to give its next files."""
        return max(self.seconds, REMOTE_SECONDS) if is_remote(path) else self.seconds

    def most(self, path: str) -> int:
        """Return how many bytes the archive may unpack to."""
        if self.unpacked is not None:
            return self.unpacked
        if is_remote(path):
            return REMOTE_UNPACKED
        try:
            return max(LEAST_UNPACKED, TIMES_ITS_SIZE * os.stat(path).st_size)
        except OSError:
            return LEAST_UNPACKED  # reported when it is opened
