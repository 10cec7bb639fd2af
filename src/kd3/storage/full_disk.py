"""Convert out-of-space errors to KD3Error, whichever library raises them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kd3.errors import KD3Error

FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)
NOTHING_LEFT = 1 << 20  # bytes: what a filesystem with less free is said to be


@contextmanager
def full_disk_told(path: Path, *, kept: str) -> Iterator[None]:
    """Convert out-of-space errors under `path` to one sentence, which ends with `kept`.

    Libraries that write say it in errors of their own (torch: "unexpected pos"), so the filesystem is asked, too.

    Raises:
        KD3Error: there is no room.
    """
    try:
        yield
    except KD3Error:
        raise
    except Exception as problem:
        if not is_full(problem, path):
            raise
        raise KD3Error(f"no space is left on the disk of {path}; {kept}") from problem


def no_space(path: Path) -> OSError:
    """Return the error of a disk without room, as the system would say it."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def is_full(problem: BaseException, path: Path) -> bool:
    """Say whether a problem came from a disk without room; for errors that do not say, whether there is none now."""
    if isinstance(problem, OSError) and problem.errno is not None:
        return problem.errno in FULL
    if "No space left" in str(problem) or "disk is full" in str(problem):
        return True
    if not isinstance(problem, RuntimeError) or not hasattr(os, "statvfs"):
        return False
    while not path.exists():
        path = path.parent
    filesystem = os.statvfs(path)
    return filesystem.f_bavail * filesystem.f_frsize < NOTHING_LEFT
