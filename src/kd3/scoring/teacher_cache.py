"""The teacher's logits of a pool, computed once and stored beside it."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from torch import Tensor

from kd3.models.teacher import Teacher
from kd3.pool import ImagePool
from kd3.pool.pool_files import LOGITS
from kd3.runtime import console
from kd3.runtime.compute import Compute
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import replacing, waiting
from kd3.scoring.batches import PoolBatches, fetched
from kd3.scoring.scan import score, scored

COMPARED = 32  # outputs computed again to validate a file
TOLERANCE = 0.05  # of the largest: in bfloat16 outputs vary by 1% with the batch


def name_for(version: int, teacher: Teacher, pool: ImagePool, compute: Compute, *more: object) -> str:
    """Return a file's name, a hash of everything its contents depend on."""
    who = (teacher.fingerprint(), teacher.is_folded)  # other rounding would choose other images
    identity = (version, *who, pool.identity, compute.device.type, compute.precision, *more)
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


def matches(kept: np.ndarray, now: np.ndarray) -> bool:
    """Return whether stored outputs equal the teacher's present ones, up to rounding."""
    return bool(np.abs(kept - now).max() <= TOLERANCE * np.abs(now).max())


def drawn_to_compare(count: int) -> np.ndarray:
    """Return the places of some of `count` stored outputs, ascending; others each time, so that none can be made up."""
    return np.sort(np.random.default_rng().choice(count, min(count, COMPARED), replace=False, shuffle=False))


VERSION = 2  # of the computation and format; other versions' files are ignored
DIGEST_BYTES = 32
BLOCK = 1 << 20
TITLE = "teacher scores the pool"


def teacher_logits(teacher: Teacher, batches: PoolBatches, compute: Compute) -> np.ndarray:
    """Return the teacher's logits of every pool image on its plain view, (N, K) float32.

    They are read from `POOL/teacher_logits/`, or computed and stored there, and memory-mapped. The file's name depends
    on the teacher's weights and normalisation, the pool's content, the precision and the file's version; a digest ends
    the file. Since the network's code may have changed, or somebody else may have made the file, some stored logits
    are compared with the teacher's present output, others each time. A damaged file, or another teacher's, is computed
    anew. Of concurrent runs one computes and the others wait. With a read-only pool or a full disk the logits stay in
    memory.
    """
    path = place_of(teacher, batches.pool, compute)
    if path is None:
        return _in_memory(teacher, batches, compute)
    if compute.ranks.count > 1:
        return _of_all_ranks(path, teacher, batches, compute)
    try:
        path.parent.mkdir(exist_ok=True)
        with waiting(path.with_suffix(".lock"), what=f"the teacher's logits {path}"):
            kept = _kept(path, teacher, batches, compute)
            if kept is None:
                _write(path, teacher, batches, compute)
                kept = _mapped(path, _shape(teacher, batches))
        return kept
    except OSError as problem:
        if path.is_file() and (kept := _kept(path, teacher, batches, compute)) is not None:
            return kept  # stored by a process with write access
        console.warn(f"the teacher's logits could not be kept at {path}: {problem.strerror or problem}")
        return _in_memory(teacher, batches, compute)


class PartOfPool(PoolBatches):
    """Subset of a pool's images with the interface of a pool; its stored outputs lie beside the pool."""

    pool: Any

    def __init__(self, batches: PoolBatches, positions: np.ndarray) -> None:
        self.batches, self.positions, self.pool = batches, positions, self
        self.path, self.image_size = batches.pool.path, batches.pool.image_size
        which = np.ascontiguousarray(positions, dtype=np.int64).tobytes()
        self.identity = hashlib.sha256(batches.pool.identity.encode() + which).hexdigest()

    def __len__(self) -> int:
        return len(self.positions)

    def iterate(self, positions: np.ndarray, size: int) -> Generator[Tensor, None, None]:
        """Yield images by their positions in the subset."""
        yield from self.batches.iterate(self.positions[positions], size)


class PartialLogits:
    """Logits of some of a pool's images, indexed by positions in the pool.

    Args:
        logits: (n, K).
        positions: of these images, (n,), ascending.
    """

    def __init__(self, logits: np.ndarray, positions: np.ndarray) -> None:
        self._logits, self._positions = logits, positions

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        found: np.ndarray = self._logits[np.searchsorted(self._positions, positions)]
        return found


def logits_of_part(teacher: Teacher, batches: PoolBatches, compute: Compute, positions: np.ndarray) -> PartialLogits:
    """Return the teacher's logits of the images at some positions, ascending, and score no others.

    They are taken from the whole pool's file if it exists; otherwise as in `teacher_logits`.
    """
    path = place_of(teacher, batches.pool, compute)
    (kept,) = compute.ranks.any(path is not None and path.is_file())
    if kept:
        return PartialLogits(teacher_logits(teacher, batches, compute), np.arange(len(batches.pool)))
    return PartialLogits(teacher_logits(teacher, PartOfPool(batches, positions), compute), positions)


def _of_all_ranks(path: Path, teacher: Teacher, batches: PoolBatches, compute: Compute) -> np.ndarray:
    """Return the logits; if a rank lacks the file, all score together and the first writes it.

    Raises:
        KD3Error: they cannot be written, or a rank does not see what the first has written.
    """
    ranks = compute.ranks
    places = ranks.from_first(drawn_to_compare(len(batches.pool)))  # the ranks score them together
    (missing,) = ranks.any(_kept(path, teacher, batches, compute, places) is None)
    if missing and ranks.is_first:
        try:
            path.parent.mkdir(exist_ok=True)
            _write(path, teacher, batches, compute)
        except OSError as problem:
            raise KD3Error(f"the teacher's logits cannot be kept at {path}: {problem.strerror or problem}") from None
    elif missing:
        for _ in scored(teacher, batches, np.arange(len(batches.pool)), teacher.normalise, compute):
            pass
    ranks.any(False)  # waits until the first rank has written it
    with ranks.failing_together():
        if not _is_whole(path, _shape(teacher, batches)):
            raise KD3Error(
                f"process {ranks.rank} does not see {path}, which the first has written; the pool must be on a "
                f"filesystem that all machines share"
            )
    return _mapped(path, _shape(teacher, batches))


def _kept(
    path: Path, teacher: Teacher, batches: PoolBatches, compute: Compute, places: np.ndarray | None = None
) -> np.ndarray | None:
    """Return the logits in a file if they are complete and, at some places, this teacher's."""
    if not path.is_file():
        return None
    if not _is_whole(path, _shape(teacher, batches)):
        console.warn(f"{path} is damaged; the teacher's logits are computed again")
        return None
    logits = _mapped(path, _shape(teacher, batches))
    positions = drawn_to_compare(len(logits)) if places is None else places
    now = score(teacher, batches, positions, teacher.normalise, compute).numpy()
    if not matches(logits[positions], now):
        console.warn(f"{path} does not match this teacher's predictions; its logits are computed again")
        return None
    return logits


def place_of(teacher: Teacher, pool: ImagePool, compute: Compute) -> Path | None:
    """Return the file for the logits; None for a pool in memory."""
    if pool.path is None:
        return None
    return Path(pool.path) / LOGITS / f"{name_for(VERSION, teacher, pool, compute)}.npy"


def _shape(teacher: Teacher, batches: PoolBatches) -> tuple[int, int]:
    return len(batches.pool), teacher.num_classes


def _in_memory(teacher: Teacher, batches: PoolBatches, compute: Compute) -> np.ndarray:
    logits = np.empty(_shape(teacher, batches), dtype=np.float32)
    start = 0
    parts = scored(teacher, batches, np.arange(len(logits)), teacher.normalise, compute, title=TITLE)
    for part in fetched(parts):
        logits[start : start + len(part)] = part.numpy()
        start += len(part)
    return logits


def _header(shape: tuple[int, int]) -> bytes:
    header = io.BytesIO()
    npy.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return header.getvalue()


def _write(path: Path, teacher: Teacher, batches: PoolBatches, compute: Compute) -> None:
    """Write the logits chunk by chunk: an array file for NumPy, followed by a digest."""
    shape = _shape(teacher, batches)
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    with replacing(path) as temporary, temporary.open("wb") as handle:
        reserve(handle, len(_header(shape)) + 4 * shape[0] * shape[1] + DIGEST_BYTES)
        _put(handle, digest, _header(shape))
        parts = scored(teacher, batches, np.arange(shape[0]), teacher.normalise, compute, title=TITLE)
        for part in fetched(parts):
            _put(handle, digest, part.numpy().astype("<f4", copy=False).tobytes())
        handle.write(digest.digest())


def _put(handle: IO[bytes], digest: hashlib.blake2b, data: bytes) -> None:
    handle.write(data)
    digest.update(data)


def _is_whole(path: Path, shape: tuple[int, int]) -> bool:
    header = _header(shape)
    left = len(header) + 4 * shape[0] * shape[1]
    try:
        if path.stat().st_size != left + DIGEST_BYTES:
            return False
        digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
        with path.open("rb") as handle:
            if handle.read(len(header)) != header:
                return False
            digest.update(header)
            left -= len(header)
            while left:
                data = handle.read(min(BLOCK, left))
                digest.update(data)
                left -= len(data)
            return handle.read() == digest.digest()
    except OSError:
        return False


def _mapped(path: Path, shape: tuple[int, int]) -> np.ndarray:
    return np.asarray(np.memmap(path, dtype="<f4", mode="r", offset=len(_header(shape)), shape=shape))
