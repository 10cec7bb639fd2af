"""`kd3 dataset`: published files in; a pool, a training set and a test set out."""

from __future__ import annotations

from pathlib import Path

from kd3.config.pool_commands import DatasetConfig
from kd3.datasets.prepare import Prepared, prepare


def run(config: DatasetConfig) -> Prepared:
    """Run the command line's settings."""
    return prepare(
        config.name,
        Path(config.files),
        Path(config.out),
        download=config.download,
        checked=config.check,
        limit=config.limit,
        workers=config.workers,
    )
