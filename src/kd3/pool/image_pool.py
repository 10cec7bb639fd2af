"""Pools as memory-mapped images, shared by many processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from kd3.config.records import Preparation
from kd3.pool.checks import part_problem, problems
from kd3.pool.decode import pixel_digest
from kd3.pool.pool_files import (
    DUPLICATES,
    INDEX,
    KEPT_OUT,
    NEAR_DUPLICATES,
    OUTPUTS,
    REJECTED,
    Manifest,
    checked_rows,
    content_hash,
    read_manifest,
)
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import refuse_links
from kd3.sources.record import printable

if TYPE_CHECKING:
    from kd3.sources.class_matching import Matching


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
            KD3Error: it is missing, no pool, unfinished, empty, visibly damaged (`verify` checks everything), of a
                newer version, or a folder in it that kd3 writes to is a link.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        refuse_links(folder / name for name in OUTPUTS)
        if manifest.images == 0:
            raise KD3Error(f"pool {folder} is empty")
        if sum(part.images for part in manifest.parts) != manifest.images:
            raise KD3Error(f"pool {folder} is damaged: its parts do not add up to {manifest.images:,} images")
        parts: list[np.ndarray] = []
        for part in manifest.parts:
            problem = part_problem(folder, part, manifest.image_size)
            if problem:
                raise KD3Error(f"pool {folder} is damaged: {problem}")
            shape = (part.images, 3, manifest.image_size, manifest.image_size)
            try:
                # A plain array over the map: indexing it costs less than indexing a memmap.
                parts.append(np.asarray(np.memmap(folder / part.file, dtype=np.uint8, mode="r", shape=shape)))
            except (OSError, ValueError) as problem:  # no memory for the map; no file
                raise KD3Error(f"pool {folder}: {part.file} cannot be read: {problem}") from None
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

    @property
    def preparation(self) -> Preparation:
        """Preparation of its pictures; for a pool in memory, the centre crop.

        Raises:
            KD3Error: this kd3 does not know the preparation.
        """
        if self._manifest is None:
            return Preparation(self.image_size)
        try:
            return self._manifest.how_made()
        except ValueError as problem:
            raise KD3Error(f"pool {self.path} was made by another kd3: {problem}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process opens the files itself; only a pool in memory is sent as a whole.
        if self.path is None:
            return ImagePool.from_array, (self._parts[0],)
        return ImagePool.open, (self.path.absolute(),)

    @property
    def stored(self) -> ImagePool:
        """The pool with its images as they are stored, which may be larger."""
        return self

    @property
    def identity(self) -> str:
        """Name of the images as they are read: the content hash, and the size of images that are resized."""
        return self.content_hash

    def at(self, size: int) -> ImagePool:
        """Return the pool with its images resized to `size` pixels as they are read; itself if they have that size."""
        if size == self.image_size:
            return self
        return self.stored if size == self.stored.image_size else ResizedPool(self.stored, size)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __repr__(self) -> str:
        return f"ImagePool({str(self.path or 'in memory')!r}, {len(self):,} images of {self.image_size} pixels)"

    def __getitem__(self, position: int) -> np.ndarray:
        image: np.ndarray = self.read(np.array([position]))[0]
        return image

    def read(self, positions: np.ndarray | slice) -> np.ndarray:
        """Return images by position, in the given order: (n,) integers -> (n, 3, N, N) uint8, a copy.

        Negative positions count from the end.

        Raises:
            IndexError: a position is outside the pool.
            TypeError: the positions are no integers (of a mask take `np.flatnonzero`).
        """
        if isinstance(positions, slice):
            positions = np.arange(*positions.indices(len(self)))
        positions = np.asarray(positions)
        if positions.size == 0:
            return np.empty((0, *self._parts[0].shape[1:]), dtype=np.uint8)
        if positions.dtype.kind not in "iu" or positions.ndim != 1:
            raise TypeError(f"positions must be (n,) integers, not {positions.dtype} {positions.shape}")
        first, last = int(positions.min()), int(positions.max())
        if first < -len(self) or last >= len(self):
            raise IndexError(f"image {last if last >= len(self) else first} of a pool of {len(self)}")
        positions = positions.astype(np.int64, copy=False)
        if first < 0:
            positions = np.where(positions < 0, positions + len(self), positions)
        if len(self._parts) == 1:
            only: np.ndarray = self._parts[0][positions]
            return only
        images = np.empty((len(positions), *self._parts[0].shape[1:]), dtype=np.uint8)
        part_of = np.searchsorted(self._starts, positions, side="right") - 1
        for part in np.unique(part_of):
            here = part_of == part
            images[here] = self._parts[part][positions[here] - self._starts[part]]
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
            with (self.path / INDEX).open("rb") as handle:  # pyarrow takes no path that is not UTF-8
                return pyarrow.parquet.read_table(handle)
        except (OSError, pyarrow.ArrowException) as problem:
            raise KD3Error(f"{self.path / INDEX} cannot be read: {problem}") from None

    def index_rows(self, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
        """Yield these columns of the index image by image, in constant memory; raises as `index` does."""
        if self.path is None:
            raise KD3Error("a pool in memory has no index")
        return checked_rows(self.path / INDEX, columns, len(self))

    def labels(self, class_names: Sequence[str]) -> np.ndarray:
        """Return the images' labels, of a pool of labelled data: (N,) int64, places in `class_names`.

        The last folder in an image's key is its class: `train/ship/0001.jpg` is a ship. Without such folders the labels
        come from the pool's sources.

        Raises:
            KD3Error: the pool is in memory, the index is missing or damaged, or an image has no label of a class.
        """
        return self.matched_labels(class_names)[0]

    def matched_labels(self, class_names: Sequence[str]) -> tuple[np.ndarray, Matching]:
        """Return the labels, and their matching to classes; raises as `labels`."""
        from kd3.sources.labels import labels_of_pool

        return labels_of_pool(
            lambda: ((str(source), str(key)) for source, key in self.index_rows(("source", "key"))),
            class_names,
            where=f"pool {self.path}",
        )

    def verify(self) -> list[str]:
        """Read everything and return the damage in words; empty for a sound pool.

        Raises:
            KD3Error: the pool is in memory.
        """
        if self.path is None:
            raise KD3Error("a pool in memory has no files to verify")
        return list(problems(self.path, self.manifest))

    def summary(self) -> str:
        """Return a summary of the pool's images and of those left out, for people."""
        manifest, counts = self.manifest, self.manifest.counts
        size = sum(part.nbytes for part in self._parts)
        rejected = sum(counts.rejected.values())
        rate = (counts.found + counts.skipped) / max(manifest.seconds, 1e-9)
        where = printable(str(self.path))
        lines = [
            f"pool {where}: {len(self):,} images of {self.image_size} x {self.image_size}, {size / 1e6:,.0f} MB",
            f"  files       {counts.found:,} in {manifest.seconds:,.1f} s ({rate:,.0f}/s)",
            f"  kept        {counts.kept:,}",
            f"  duplicates  {counts.duplicates:,}" + (f" (listed in {DUPLICATES})" if counts.duplicates else ""),
        ]
        if counts.near_duplicates:
            lines.append(f"  near copies {counts.near_duplicates:,} (in groups in {NEAR_DUPLICATES})")
        if manifest.kept_out:
            tested = sum(known.images for known in manifest.kept_out)
            lines.append(
                f"  kept out    {counts.kept_out:,} like one of {tested:,} test images"
                + (f" (pairs in {KEPT_OUT})" if counts.kept_out else "")
            )
        lines.append(f"  rejected    {rejected:,}" + (f" (listed in {REJECTED})" if rejected else ""))
        lines += [f"    {reason:<20} {n:,}" for reason, n in sorted(counts.rejected.items(), key=lambda x: -x[1])]
        if counts.skipped:
            lines.append(f"  skipped     {counts.skipped:,} metadata and hidden files")
        lines.append(f"  content     {self.content_hash[:16]}")
        return "\n".join(lines)


def at_size(pool: ImagePool, size: int, *, who: str, where: str) -> ImagePool:
    """Return a pool with its images at the size that a network takes.

    `who` takes them, and `where` they are, for messages.

    Raises:
        KD3Error: they are smaller; enlarged ones would be blurred.
    """
    if pool.image_size < size:
        raise KD3Error(
            f"{where} has images of {pool.image_size} pixels but {who} takes {size}; "
            f"ingest them with --image-size {size} or more"
        )
    return pool.at(size)


class ResizedPool(ImagePool):
    """A pool whose images are resized as they are read, by Pillow's bicubic filter with antialiasing.

    Its content hash is that of the pool: it holds the same images.

    Args:
        pool: as it is stored.
        size: side of the images, in pixels.
    """

    def __init__(self, pool: ImagePool, size: int) -> None:
        super().__init__(pool._parts, path=pool.path, manifest=pool._manifest, digest=pool.content_hash)
        self._stored, self.image_size = pool, size

    @property
    def stored(self) -> ImagePool:
        """The pool as it is stored."""
        return self._stored

    @property
    def identity(self) -> str:
        """The content hash, and this size."""
        return f"{self.content_hash}-{self.image_size}"

    @property
    def preparation(self) -> Preparation:
        """Preparation of its pictures, at this size; raises as `ImagePool.preparation`."""
        return dataclasses.replace(self._stored.preparation, size=self.image_size)

    def __reduce__(self) -> tuple[Any, ...]:
        return ResizedPool, (self._stored, self.image_size)

    def read(self, positions: np.ndarray | slice) -> np.ndarray:
        """Return resized images by position: (n,) integers -> (n, 3, N, N) uint8; raises as `ImagePool.read`."""
        images = self._stored.read(positions)
        size = (self.image_size, self.image_size)
        found = np.empty((len(images), 3, *size), dtype=np.uint8)
        for image, place in zip(images, found, strict=True):
            resized = Image.fromarray(image.transpose(1, 2, 0)).resize(size, Image.Resampling.BICUBIC)
            place[:] = np.asarray(resized).transpose(2, 0, 1)
        return found
