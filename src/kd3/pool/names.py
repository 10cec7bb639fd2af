"""Origin of a pool's images, read on demand."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow
import pyarrow.parquet as parquet

from kd3.errors import KD3Error
from kd3.pool.image_pool import ImagePool
from kd3.pool.index_file import INDEX

BATCH = 1 << 14
IN_MEMORY = "memory"


def check_index(pool: ImagePool) -> None:
    """Check that a pool's index can be opened and has a row for each image.

    Raises:
        KD3Error: it is missing, damaged or of another length.
    """
    if pool.path is None:
        return
    path = pool.path / INDEX
    try:
        with path.open("rb") as handle, parquet.ParquetFile(handle) as file:  # a path must be UTF-8 there
            rows, columns = file.metadata.num_rows, file.schema_arrow.names
    except (OSError, pyarrow.ArrowException) as problem:
        raise KD3Error(f"pool {pool.path} is damaged: {INDEX} cannot be read: {problem}") from None
    if rows != len(pool):
        raise KD3Error(f"pool {pool.path} is damaged: {INDEX} lists {rows:,} images, the manifest {len(pool):,}")
    if not {"source", "key"} <= set(columns):
        raise KD3Error(f"pool {pool.path} is damaged: {INDEX} does not have the columns source and key")


def names(pool: ImagePool) -> Iterator[tuple[list[str], list[str]]]:
    """Yield sources and keys in pool order, in chunks; a pool in memory numbers its images.

    Raises:
        KD3Error: the index cannot be read; see `check_index` for an early check.
    """
    if pool.path is None:
        for start in range(0, len(pool), BATCH):
            keys = [str(position) for position in range(start, min(start + BATCH, len(pool)))]
            yield [IN_MEMORY] * len(keys), keys
        return
    try:
        with (pool.path / INDEX).open("rb") as handle, parquet.ParquetFile(handle) as file:
            for batch in file.iter_batches(BATCH, columns=["source", "key"]):
                yield batch.column("source").to_pylist(), batch.column("key").to_pylist()
    except (OSError, pyarrow.ArrowException) as problem:
        raise KD3Error(f"pool {pool.path} is damaged: {INDEX} cannot be read: {problem}") from None
