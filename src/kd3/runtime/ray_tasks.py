"""Send pieces of work to a Ray cluster. If a process or machine dies, its piece starts again elsewhere.

A piece is a call of a function that resumes from the files of an earlier, killed call on the shared disk. So only names
are sent, and a lost worker costs only unsaved work.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from kd3.runtime import console
from kd3.runtime.errors import KD3Error, in_words

LOST_WORKERS = 20  # per piece, before giving up


@dataclass(frozen=True)
class Piece:
    """A call: `module:function`, its arguments, and the file that its messages go to."""

    name: str
    location: str
    arguments: Mapping[str, Any]
    log: Path


@dataclass(frozen=True)
class Done:
    """Outcome of a piece."""

    name: str
    problem: str | None = None  # in words; None on success
    kind: str = ""  # the error's class


@contextmanager
def ray_cluster() -> Iterator[Any]:
    """Yield Ray, connected to the cluster at RAY_ADDRESS, or to a local one for the duration of the context.

    Raises:
        KD3Error: Ray is not installed, or the cluster does not answer.
    """
    try:
        import ray
    except ImportError:
        raise KD3Error("--engine ray needs Ray: pip install 'kd3[ray]'") from None
    begun = not ray.is_initialized()
    try:
        ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.WARNING, include_dashboard=False)
    except (ConnectionError, RuntimeError, TimeoutError) as problem:
        raise KD3Error(f"the Ray cluster does not answer: {in_words(problem).splitlines()[0]}") from None
    try:
        yield ray
    finally:
        if begun:
            ray.shutdown()


def cores(ray: Any) -> int:
    """Return the number of cores of the cluster."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def has_gpus(ray: Any) -> bool:
    """Return whether the cluster has GPUs."""
    return bool(ray.cluster_resources().get("GPU", 0) >= 1)


def do_all(ray: Any, pieces: Sequence[Piece], *, gpus: int = 0) -> Iterator[Done]:
    """Yield pieces as they finish, each on one core and the given GPUs, with as many in parallel as fit."""
    task = ray.remote(_do).options(num_cpus=1, num_gpus=gpus, max_retries=LOST_WORKERS)
    under_way = {task.remote(piece, os.getcwd()): piece for piece in pieces}
    try:
        while under_way:
            (first, *_), _ = ray.wait(list(under_way), num_returns=1)
            piece = under_way.pop(first)
            try:
                yield ray.get(first)
            except ray.exceptions.RayError as lost:
                kind = type(lost).__name__
                yield Done(piece.name, f"it cannot be done ({kind}); see {piece.log}", kind)
    finally:
        for reference in under_way:
            ray.cancel(reference)


def _do(piece: Piece, folder: str) -> Done:
    """Do a piece, in a process of the cluster."""
    os.chdir(folder)
    piece.log.parent.mkdir(parents=True, exist_ok=True)
    module, _, function = piece.location.partition(":")
    with piece.log.open("a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            getattr(import_module(module), function)(**piece.arguments)
        except KD3Error as problem:
            console.fail(str(problem))
            return Done(piece.name, str(problem), type(problem).__name__)
    return Done(piece.name)
