"""The teacher's logits of a pool, computed once and kept beside it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kd3 import console
from kd3.compute import Compute
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool
from kd3.storage.atomic import replacing
from kd3.training.scan import score

FOLDER = "teacher_logits"
COMPARED = 16  # images


def teacher_logits(teacher: Teacher, pool: ImagePool, compute: Compute) -> Tensor:
    """Return the teacher's logits of every pool image on its plain view, (N, K) float32.

    Read from `POOL/teacher_logits/` where an earlier run left them, else computed and left there.
    The file's name is made of the teacher's weights and normalisation, the pool's content and the
    precision; and since a network may change in its code alone, the first kept logits are compared
    with what the teacher says of these images now. A file that is damaged or another teacher's is
    made anew. A pool that cannot be written to costs the computation, nothing else.
    """
    path = _path(teacher, pool, compute)
    if path is not None and path.is_file():
        kept = _read(path, (len(pool), teacher.num_classes))
        if kept is not None and _still_true(kept, teacher, pool, compute):
            return kept
        what = "damaged" if kept is None else "not what this teacher says now"
        console.warn(f"{path} is {what}; the teacher's logits are computed again")
    logits = score(teacher, pool, np.arange(len(pool)), teacher.normalise, compute, title="teacher scores the pool")
    if path is not None:
        try:
            with replacing(path) as temporary, temporary.open("wb") as handle:
                np.save(handle, logits.numpy(), allow_pickle=False)
        except OSError as problem:
            console.warn(f"the teacher's logits could not be kept at {path}: {problem.strerror}")
    return logits


def _path(teacher: Teacher, pool: ImagePool, compute: Compute) -> Path | None:
    if pool.path is None:
        return None
    identity = repr((teacher.fingerprint(), pool.content_hash, compute.device.type, compute.precision))
    return Path(pool.path) / FOLDER / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.npy"


def _still_true(kept: Tensor, teacher: Teacher, pool: ImagePool, compute: Compute) -> bool:
    now = score(teacher, pool, np.arange(min(COMPARED, len(pool))), teacher.normalise, compute)
    # bfloat16 alone moves logits by a hundredth of their size with the batch.
    return bool((kept[: len(now)] - now).abs().max() <= 0.05 * now.abs().max())


def _read(path: Path, shape: tuple[int, int]) -> Tensor | None:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if values.shape != shape or values.dtype != np.float32 or not np.isfinite(values).all():
        return None
    return torch.from_numpy(values)
