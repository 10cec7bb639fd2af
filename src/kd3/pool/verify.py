"""Verification of a whole pool."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from kd3.pool.decode import pixel_digest
from kd3.pool.index_file import INDEX, read_index
from kd3.pool.left_out import LEFT_OUT
from kd3.pool.manifest import Manifest, Part, content_hash, sha256_of

CHANGED = "is not what was written when the pool was made"
PROBLEMS_SHOWN = 100  # of a pool that is damaged throughout


def problems(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Yield the problems of a pool's files, in words; nothing for a sound pool."""
    try:
        yield from islice(_in_order(folder, manifest), PROBLEMS_SHOWN)
    except Exception as problem:
        # pyarrow raises its own errors, OSError, KeyError for a missing column, UnicodeError.
        yield f"{INDEX} cannot be read: {problem}"


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
