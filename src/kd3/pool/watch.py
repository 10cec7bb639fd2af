"""Background check, once per run, that a pool's pixels are those originally written."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kd3 import console
from kd3.errors import KD3Error

if TYPE_CHECKING:
    from kd3.pool.image_pool import ImagePool

BLOCK = 4 << 20  # bytes
PATIENCE = 5.0  # seconds that finished work waits for the rest of the check


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
        self._thread = threading.Thread(target=self._look, name="kd3-pool", daemon=True)

    def start(self) -> None:
        """Start reading."""
        if self._parts:
            self._thread.start()

    def check(self) -> None:
        """Raise an error found so far.

        Raises:
            KD3Error: a part has changed.
        """
        if self._damaged:
            raise KD3Error(
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

    def _look(self) -> None:
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
        KD3Error: at the end of the block, or by `Watch.check` before: a part has changed.
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
