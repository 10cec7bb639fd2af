"""Read a pool: packed images, mapped into memory, by many processes at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kd3.errors import KD3Error
from kd3.pool.decode import pixel_digest
from kd3.pool.manifest import Manifest, content_hash, read_manifest

INDEX = "index.parquet"
REJECTED = "rejected.csv"
DUPLICATES = "duplicates.csv"


class ImagePool:
    """Equal-sized RGB images: `pool[i]` is uint8 (3, N, N).

    Open one with `ImagePool.open(path)`, or make one in memory with `ImagePool.from_array`.
    """

    def __init__(self, parts: list[np.ndarray], *, path: Path | None, manifest: Manifest | None, digest: str) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        self.path = path
        self._manifest = manifest
        self.content_hash = digest
        self.image_size = int(parts[0].shape[-1])

    @classmethod
    def open(cls, path: str | Path) -> ImagePool:
        """Open a finished pool.

        Raises:
            KD3Error: it is missing, no pool, unfinished, empty, damaged in a way that shows at once
                (`verify` looks at everything), or of a newer version.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        if manifest.images == 0 or sum(part.images for part in manifest.parts) != manifest.images:
            raise KD3Error(f"pool {folder} is empty or its manifest does not add up")
        parts: list[np.ndarray] = []
        for part in manifest.parts:
            shape = (part.images, 3, manifest.image_size, manifest.image_size)
            file = folder / part.file
            if not file.is_file():
                raise KD3Error(f"pool {folder} is damaged: {part.file} is missing")
            if file.stat().st_size != np.prod(shape):
                raise KD3Error(
                    f"pool {folder} is damaged: {part.file} has {file.stat().st_size:,} bytes, not {np.prod(shape):,}"
                )
            parts.append(np.memmap(file, dtype=np.uint8, mode="r", shape=shape))
        return cls(parts, path=folder, manifest=manifest, digest=manifest.content_hash)

    @classmethod
    def from_array(cls, images: np.ndarray) -> ImagePool:
        """Make a pool in memory of uint8 images (n, 3, N, N).

        Raises:
            KD3Error: another shape or type, or no images.
        """
        shape = images.shape
        if images.dtype != np.uint8 or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or not shape[0]:
            raise KD3Error(f"a pool's images must be uint8 (n, 3, N, N), not {images.dtype} {shape}")
        digest = content_hash(shape[-1], map(pixel_digest, images))
        return cls([images], path=None, manifest=None, digest=digest)

    @property
    def manifest(self) -> Manifest:
        """Counts, settings, parts.

        Raises:
            KD3Error: the pool is in memory and has none.
        """
        if self._manifest is None:
            raise KD3Error("a pool in memory has no manifest")
        return self._manifest

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, place: int) -> np.ndarray:
        if not -len(self) <= place < len(self):
            raise IndexError(f"image {place} of a pool of {len(self)}")
        image: np.ndarray = self.read(np.array([place % len(self)]))[0]
        return image

    def read(self, places: np.ndarray) -> np.ndarray:
        """Return images by position, in the order asked for: (n,) integers -> (n, 3, N, N) uint8, a copy."""
        places = np.asarray(places, dtype=np.int64)
        if len(self._parts) == 1:
            only: np.ndarray = np.asarray(self._parts[0][places])
            return only
        images = np.empty((len(places), *self._parts[0].shape[1:]), dtype=np.uint8)
        part_of = np.searchsorted(self._starts, places, side="right") - 1
        for part in np.unique(part_of):
            here = part_of == part
            images[here] = self._parts[part][places[here] - self._starts[part]]
        return images

    def index(self) -> Any:
        """Return the pyarrow table of the images: source, key, sha256, width, height, format, digest.

        Raises:
            KD3Error: the pool is in memory, or the index is missing or damaged.
        """
        import pyarrow
        import pyarrow.parquet

        if self.path is None:
            raise KD3Error("a pool in memory has no index")
        try:
            return pyarrow.parquet.read_table(self.path / INDEX)
        except (OSError, pyarrow.ArrowException) as problem:
            raise KD3Error(f"{self.path / INDEX} cannot be read: {problem}") from None

    def verify(self) -> list[str]:
        """Read everything and return what is damaged, in words; empty for a sound pool."""
        table = self.index()
        digests = [bytes(value) for value in table.column("digest").to_pylist()]
        if len(digests) != len(self):
            return [f"{INDEX} lists {len(digests):,} images, the manifest {len(self):,}"]
        problems = []
        place = 0
        for part, description in zip(self._parts, self.manifest.parts, strict=True):
            for offset, image in enumerate(part):
                if pixel_digest(image) != digests[place]:
                    name = table.column("key")[place].as_py()
                    problems.append(
                        f"{description.file}: image {offset} (pool position {place}, {name}) has other pixels"
                    )
                place += 1
        if content_hash(self.image_size, digests) != self.content_hash:
            problems.append(f"{INDEX} does not have the content hash of the manifest")
        return problems

    def summary(self) -> str:
        """Return what the pool holds and what was left out, for people."""
        manifest, counts = self.manifest, self.manifest.counts
        size = sum(part.nbytes for part in self._parts)
        rejected = sum(counts.rejected.values())
        rate = (counts.found + counts.skipped) / max(manifest.seconds, 1e-9)
        lines = [
            f"pool {self.path}: {len(self):,} images of {self.image_size} x {self.image_size}, {size / 1e6:,.0f} MB",
            f"  files       {counts.found:,} in {manifest.seconds:,.1f} s ({rate:,.0f}/s)",
            f"  kept        {counts.kept:,}",
            f"  duplicates  {counts.duplicates:,}" + (f" (listed in {DUPLICATES})" if counts.duplicates else ""),
            f"  rejected    {rejected:,}" + (f" (listed in {REJECTED})" if rejected else ""),
        ]
        lines += [f"    {reason:<20} {n:,}" for reason, n in sorted(counts.rejected.items(), key=lambda x: -x[1])]
        if counts.skipped:
            lines.append(f"  skipped     {counts.skipped:,} metadata and hidden files")
        lines.append(f"  content     {self.content_hash[:16]}")
        return "\n".join(lines)
