"""Common part of all files of teacher outputs beside a pool: naming, preallocation, validation."""

from __future__ import annotations

import hashlib
import os
from typing import IO

import numpy as np

from kd3.compute import Compute
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool

COMPARED = 16  # outputs computed again to validate a file
TOLERANCE = 0.05  # of the largest: in bfloat16 outputs vary by 1% with the batch


def name_for(version: int, teacher: Teacher, pool: ImagePool, compute: Compute, *more: object) -> str:
    """Return a file's name, a hash of everything its contents depend on."""
    who = (teacher.fingerprint(), teacher.is_folded)  # other rounding would choose other images
    identity = (version, *who, pool.content_hash, compute.device.type, compute.precision, *more)
    return hashlib.sha256(repr(identity).encode()).hexdigest()[:32]


def reserve(handle: IO[bytes], size: int) -> None:
    """Reserve disk space, so that a full disk fails now and not after hours of work.

    Raises:
        OSError: the disk is full.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle.fileno(), 0, size)
    else:
        handle.truncate(size)


def says_the_same(kept: np.ndarray, now: np.ndarray) -> bool:
    """Return whether stored outputs equal the teacher's present ones, up to rounding."""
    return bool(np.abs(kept - now).max() <= TOLERANCE * np.abs(now).max())
