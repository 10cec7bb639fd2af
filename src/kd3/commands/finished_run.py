"""Settings, teacher and pool of a finished run, for the commands that continue from it."""

from __future__ import annotations

from typing import Any

from kd3.config.settings import read_yaml
from kd3.errors import KD3Error
from kd3.models.load_teacher import load_teacher
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool
from kd3.runs.folder import RunFolder, read_summary
from kd3.runs.places import find
from kd3.training.pool_split import PoolSplit, split_pool


def check_finished(folder: RunFolder) -> None:
    """Refuse a folder that is not a run, or a run that is not finished."""
    if not folder.config.is_file():
        raise KD3Error(f"{folder.path} is no run folder; give one that `kd3 distill --out` made")
    if not folder.summary.is_file():
        raise KD3Error(f"the run {folder.path} is not finished; finish it with: {folder.resume_command}")
    read_summary(folder.path)


def settings_of(folder: RunFolder) -> dict[str, Any]:
    """Return its settings."""
    return read_yaml(folder.config, what="configuration of the run")


def teacher_of(folder: RunFolder, *, given: str | None, trust_code: bool) -> Teacher:
    """Return its teacher, from the run's record or the user's new location (`given`).

    Raises:
        KD3Error: it is missing, or was a live one.
    """
    named = given or str(settings_of(folder).get("teacher"))
    if named.startswith("live:"):
        raise KD3Error(f"the teacher of {folder.path} was a live one; give a description of it: --teacher")
    try:
        # The user's location takes precedence over the run's.
        place = named if given else find(folder.path, "teacher", named)
        return load_teacher(place, trust_code=trust_code or (None if given else False))
    except KD3Error as problem:
        if given:
            raise
        raise KD3Error(f"{problem}; say where the teacher of {folder.path} is now: --teacher") from None


def pool_of(folder: RunFolder, *, given: str | None, instead: str) -> ImagePool:
    """Return its pool, likewise; `instead` is the flag for the user's own images in place of the pool.

    Raises:
        KD3Error: it is missing, or was a live one.
    """
    named = given or str(settings_of(folder).get("pool"))
    if named.startswith("live:"):
        raise KD3Error(f"the pool of {folder.path} was a live one; give images: {instead}")
    try:
        return ImagePool.open(named if given else find(folder.path, "pool", named))
    except KD3Error as problem:
        if given:
            raise
        raise KD3Error(
            f"{problem}; say where the pool of {folder.path} is now (--pool), or give images: {instead}"
        ) from None


def split_of(folder: RunFolder, pool: ImagePool) -> PoolSplit:
    """Return the split of its pool into training and held-out images."""
    train = settings_of(folder).get("train") or {}
    return split_pool(pool, int(train.get("holdout", 1000)), share=float(train.get("share", 1.0)))


def check_identity(folder: RunFolder, what: str, now: str) -> None:
    """Refuse a teacher or pool (`what`) other than the run's, by its hash."""
    try:
        folder.check_origin(**{what: now})
    except KD3Error as problem:
        if "cannot be read" in str(problem):
            raise
        raise KD3Error(f"--{what} is not the {what} of the run {folder.path}; bring that one") from None
