"""`kd3 ingest`, `kd3 dataset` and `kd3 pool`: crawls, published files and pools in, pools out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kd3.config.pool_commands import DatasetConfig, IngestConfig, PoolConfig
from kd3.pool import ImagePool, derive_pool
from kd3.pool.ingestion import ingest_with
from kd3.pool.listed import ListedImages
from kd3.pool.merge import ingest_on_ray, merge_pools
from kd3.runtime.errors import KD3Error
from kd3.studies.datasets import Prepared, prepare


@dataclass(frozen=True)
class Ingested:
    """A finished pool."""

    pool: ImagePool

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest."""
        return self.pool.manifest.to_dict()

    def __str__(self) -> str:
        return self.pool.summary()


def ingest_crawl(config: IngestConfig) -> Ingested:
    """Run the command line's settings."""
    if config.engine == "ray":
        return Ingested(ingest_on_ray(config))
    return Ingested(ingest_with(config))


def make_dataset(config: DatasetConfig) -> Prepared:
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


SHOWN = 5


@dataclass(frozen=True)
class Pools:
    """Facts about pools, or the new pool."""

    pools: list[ImagePool]
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return their manifests."""
        return {"pools": [pool.manifest.to_dict() for pool in self.pools]}

    def __str__(self) -> str:
        return "\n".join([*(pool.summary() for pool in self.pools), *([self.note] if self.note else [])])


def run(config: PoolConfig) -> Pools:
    """Run the command line's settings."""
    return ACTIONS[config.action](config)


def _info(config: PoolConfig) -> Pools:
    _only(config)
    return Pools([ImagePool.open(path) for path in config.pools])


def _verify(config: PoolConfig) -> Pools:
    _only(config)
    pools = [ImagePool.open(path) for path in config.pools]
    for pool in pools:
        problems = pool.verify()
        if problems:
            more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
            raise KD3Error(f"pool {pool.path} is damaged: {'; '.join(problems[:SHOWN])}{more}")
    return Pools(pools, "every image is as it was when its pool was made")


def _merge(config: PoolConfig) -> Pools:
    _only(config, "out")
    return Pools([merge_pools([*config.pools], _out(config))])


def _sample(config: PoolConfig) -> Pools:
    _only(config, "out", "share", "seed")
    if config.share is None:
        raise KD3Error("pool sample needs --share, such as --share 0.1")
    return Pools([derive_pool(_one(config), _out(config), share=config.share, seed=config.seed)])


def _filter(config: PoolConfig) -> Pools:
    _only(config, "out", "keep", "drop")
    if (config.keep is None) == (config.drop is None):
        raise KD3Error("pool filter needs either --keep or --drop, a file that lists images")
    pool = _one(config)
    listed = ListedImages(str(config.keep or config.drop))
    found = np.zeros(len(pool), dtype=bool)
    for position, (source, key) in enumerate(pool.index_rows(("source", "key"))):
        found[position] = listed.holds(source, key)
    if not found.any():
        raise KD3Error(f"{config.keep or config.drop} lists no image of pool {pool.path}")
    without = np.flatnonzero(~found if config.keep else found)
    if len(without) == len(pool):
        raise KD3Error(f"{config.drop} lists every image of pool {pool.path}; nothing would be left")
    return Pools([derive_pool(pool, _out(config), without=without)])


ACTIONS: dict[str, Callable[[PoolConfig], Pools]] = {
    "info": _info,
    "verify": _verify,
    "merge": _merge,
    "sample": _sample,
    "filter": _filter,
}


def _only(config: PoolConfig, *allowed: str) -> None:
    """Refuse flags that an action does not use."""
    defaults = {name: field.default for name, field in PoolConfig.model_fields.items()}
    for name in ("out", "share", "seed", "keep", "drop"):
        if name not in allowed and getattr(config, name) != defaults[name]:
            raise KD3Error(f"pool {config.action} has no use for --{name}")


def _one(config: PoolConfig) -> ImagePool:
    if len(config.pools) > 1:
        raise KD3Error(f"pool {config.action} takes one pool; merge them first: kd3 pool merge POOL... --out POOL")
    return ImagePool.open(config.pools[0])


def _out(config: PoolConfig) -> str:
    if config.out is None:
        raise KD3Error(f"pool {config.action} needs --out, the folder of the new pool")
    return config.out
