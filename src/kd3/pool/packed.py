"""Files of packed pixels: consecutive images in parts of bounded size."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO

import numpy as np

from kd3.errors import KD3Error
from kd3.pool.manifest import Part, sha256_of
from kd3.storage.atomic import sync_folder

PARTS = "images-*.bin"
PART_BYTES = 256 << 20
WRITE_BYTES = 1 << 20


class PackedImages:
    """Appends images (3, N, N) uint8 to a pool's parts.

    The first `images` exist already; everything after them is cut off.

    Raises:
        KD3Error: there are fewer.
    """

    def __init__(self, folder: Path, image_size: int, *, images_per_part: int, images: int = 0) -> None:
        self.folder, self.images, self.images_per_part = folder, images, images_per_part
        self.image_size, self.image_bytes = image_size, 3 * image_size * image_size
        self._handle: IO[bytes] | None = None
        self._digest = hashlib.sha256()  # of the part that is written to
        self._digests: dict[str, str] = {}  # of the parts before it
        self._cut()

    def append(self, pixels: np.ndarray) -> None:
        """Append an image; `sync` makes it survive a crash."""
        if self._handle is None or self.images % self.images_per_part == 0:
            self._open_part(self.images // self.images_per_part)
        assert self._handle is not None
        self._handle.write(pixels.data)
        self._digest.update(pixels.data)
        self.images += 1

    def read(self, positions: np.ndarray) -> np.ndarray:
        """Return images by position: (n,) integers -> (n, 3, N, N) uint8; also unsynced ones."""
        if self._handle is not None:
            self._handle.flush()
        images = np.empty((len(positions), self.image_bytes), dtype=np.uint8)
        numbers = positions // self.images_per_part
        for number in np.unique(numbers):
            here = numbers == number
            part = np.memmap(self.folder / part_name(int(number)), dtype=np.uint8, mode="r")
            images[here] = part.reshape(-1, self.image_bytes)[positions[here] % self.images_per_part]
        return images.reshape(len(positions), 3, self.image_size, self.image_size)

    def sync(self) -> None:
        """Return once everything so far is on disk."""
        if self._handle is not None:
            self._handle.flush()
            os.fsync(self._handle.fileno())

    def close(self) -> None:
        """Close the file; its last bytes are written but not synced."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._digests[Path(handle.name).name] = self._digest.hexdigest()
            handle.close()  # writes what is buffered, and fails where the disk is full

    def parts(self) -> list[Part]:
        """Return the files and their numbers of images."""
        full, rest = divmod(self.images, self.images_per_part)
        sizes = [self.images_per_part] * full + ([rest] if rest else [])
        return [Part(file=part_name(number), images=size) for number, size in enumerate(sizes)]

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of each file in hex, by name: computed while writing; older parts are read."""
        if self._handle is not None:
            self._digests[Path(self._handle.name).name] = self._digest.hexdigest()
        return {part.file: self._digests.get(part.file) or sha256_of(self.folder / part.file) for part in self.parts()}

    def _open_part(self, number: int) -> None:
        self.sync()
        self.close()
        path = self.folder / part_name(number)
        self._digest = hashlib.sha256(path.read_bytes() if path.is_file() else b"")
        self._handle = path.open("ab", buffering=WRITE_BYTES)
        sync_folder(self.folder)

    def _cut(self) -> None:
        """Cut off pixels that were appended but never recorded; recorded ones must be there."""
        expected = {part.file: part.images * self.image_bytes for part in self.parts()}
        for path in self.folder.glob(PARTS):
            if path.name not in expected:
                path.unlink()
        for name, size in expected.items():
            path = self.folder / name
            if not path.is_file() or path.stat().st_size < size:
                raise KD3Error(
                    f"the unfinished pool {self.folder} is damaged: {name} is missing or shorter than recorded; "
                    f"remove the folder and begin again"
                )
            os.truncate(path, size)


def images_per_part(image_size: int, part_bytes: int = PART_BYTES) -> int:
    """Return how many images of this side a part holds, at least one."""
    return max(1, part_bytes // (3 * image_size * image_size))


def part_name(number: int) -> str:
    """Return the file name of a part."""
    return f"images-{number:05d}.bin"
