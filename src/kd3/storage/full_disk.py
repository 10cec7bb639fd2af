"""Convert out-of-space errors to KD3Error, from any library."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kd3.errors import KD3Error

FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)
NOTHING_LEFT = 1 << 20  # bytes: a filesystem with less counts as full


@contextmanager
def full_disk_told(path: Path, *, kept: str) -> Iterator[None]:
    """Convert out-of-space errors under `path` to one sentence, which ends with `kept`.

    Libraries raise their own errors (torch: "unexpected pos"), so the free space is checked, too.

    Raises:
        KD3Error: the disk is full.
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
    """Return the system's error for a full disk."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def is_full(problem: BaseException, path: Path) -> bool:
    """Return whether an error came from a full disk; for unspecific errors, whether the disk is full now."""
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
