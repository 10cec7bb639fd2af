"""Checks of a pool: the whole of it read once, and its pixels compared with those written, beside other work."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kd3.pool.decode import pixel_digest
from kd3.pool.pool_files import (
    HASHES,
    INDEX,
    LEFT_OUT,
    OUTPUTS,
    Manifest,
    Part,
    content_hash,
    read_index,
    sha256_of,
)
from kd3.runtime import console
from kd3.runtime.errors import KD3Error, in_words

if TYPE_CHECKING:
    from kd3.pool.image_pool import ImagePool


CHANGED = "is not what was written when the pool was made"
PROBLEMS_SHOWN = 100  # of a pool that is damaged throughout


def problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Yield the problems of a pool's files, in words; nothing for a sound pool."""
    try:
        yield from islice(_in_order(folder, manifest), PROBLEMS_SHOWN)
    except Exception as problem:
        # pyarrow raises its own errors, OSError, KeyError for a missing column, UnicodeError.
        yield f"{INDEX} cannot be read: {in_words(problem)}"


def part_problem(folder: Path, part: Part, image_size: int) -> str | None:
    """Return the problem of a part that shows without reading it: missing, or of the wrong size."""
    expected = part.images * 3 * image_size**2
    if Path(part.file).name != part.file:
        return f"{part.file} is no name of a part"
    try:
        size = (folder / part.file).stat().st_size
    except OSError:
        return f"{part.file} is missing"
    return None if size == expected else f"{part.file} has {size:,} bytes, not {expected:,}"


def _in_order(folder: Path, manifest: Manifest) -> Iterator[str]:
    rows = read_index(folder / INDEX, ("key", "digest"))
    position = listed = 0
    digests = bytearray()
    for part in manifest.parts:
        problem = part_problem(folder, part, manifest.image_size)
        if problem:
            yield problem
        images = None if problem else _map(folder / part.file, part.images, manifest.image_size)
        for offset in range(part.images):
            row = next(rows, None)
            if row is not None:
                listed += 1
                digests += row[1]
                if images is not None and pixel_digest(images[offset]) != row[1]:
                    yield f"{part.file}: image {offset} (pool position {position}, {row[0]}) has other pixels"
            position += 1
    listed += sum(1 for _ in rows)
    if listed != manifest.images:
        yield f"{INDEX} lists {listed:,} images, the manifest {manifest.images:,}"
    elif content_hash(manifest.image_size, [bytes(digests)]) != manifest.content_hash:
        yield f"{INDEX} does not have the content hash of the manifest"
    elif (digest := manifest.files.get(INDEX)) and sha256_of(folder / INDEX) != digest:
        yield f"{INDEX} {CHANGED}"
    for name in LEFT_OUT:
        digest = manifest.files.get(name)
        if digest and not (folder / name).is_file():
            yield f"{name} is missing"
        elif digest and sha256_of(folder / name) != digest:
            yield f"{name} {CHANGED}"


def _map(path: Path, images: int, image_size: int) -> np.ndarray:
    return np.memmap(path, dtype=np.uint8, mode="r", shape=(images, 3, image_size, image_size))


BLOCK = 4 << 20  # bytes
PATIENCE = 5.0  # seconds that finished work waits for the rest of the check


class DamagedPoolError(KD3Error):
    """A pool's pixels are not those written."""


def forget_outputs(folder: Path) -> None:
    """Remove what was computed from a pool's pixels and is stored beside them.

    It is named after the pool's content: once the pool is mended, it would be taken for that of the right pixels.
    """
    for name in OUTPUTS:
        shutil.rmtree(folder / name, ignore_errors=True)
    with suppress(OSError):
        for path in folder.glob(HASHES.format("*")):
            path.unlink()


class Watch:
    """Compares a pool's parts with their digests, in a thread of its own."""

    def __init__(self, pool: ImagePool) -> None:
        self._folder = pool.path
        files = {} if pool.path is None else pool.manifest.files
        # A pool of an earlier kd3 has no digests of its parts: `kd3 pool verify` looks at each of its images.
        parts = pool.manifest.parts if files else []
        self._parts = [(part.file, files[part.file]) for part in parts if part.file in files]
        self._damaged: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._compare, name="kd3-pool", daemon=True)

    def start(self) -> None:
        """Start reading."""
        if self._parts:
            self._thread.start()

    def check(self) -> None:
        """Raise an error found so far; what was computed from such pixels and stored beside them is removed.

        Raises:
            DamagedPoolError: a part has changed.
        """
        if self._damaged and self._folder:
            forget_outputs(self._folder)
            raise DamagedPoolError(
                f"pool {self._folder} is damaged: {self._damaged} is not what was written when the pool was made, so "
                f"what came of it is wrong; kd3 pool verify {self._folder} names the images"
            )

    def finish(self, patience: float | None) -> None:
        """Wait for the rest, up to a time or without limit; raises as `check` does."""
        if self._thread.is_alive():
            self._thread.join(patience)
        self.stop()
        self.check()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _compare(self) -> None:
        for name, digest in self._parts:
            found = _digest(Path(str(self._folder)) / name, self._stop)
            if self._stop.is_set():
                return
            if found != digest:
                self._damaged = name
                console.warn(f"pool {self._folder} is damaged: {name} is not what was written when the pool was made")
                return


@contextmanager
def watched(pool: ImagePool, *, to_the_end: bool = False) -> Iterator[Watch]:
    """Check a pool's pixels while the block works with them.

    Args:
        to_the_end: the block ends only after the complete check.

    Raises:
        DamagedPoolError: at the end of the block, or by `Watch.check` before: a part has changed.
    """
    watch = Watch(pool)
    watch.start()
    try:
        yield watch
    except BaseException:
        watch.stop()
        raise
    watch.finish(None if to_the_end else PATIENCE)


def _digest(path: Path, stop: threading.Event) -> str | None:
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as handle:
            while not stop.is_set() and (data := handle.read(BLOCK)):
                digest.update(data)
    except OSError:
        return None
    return digest.hexdigest()
