"""`kd3 ingest`: a crawl in, a pool out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kd3.cluster.ray_ingest import ingest_on_ray
from kd3.config.pool_commands import IngestConfig
from kd3.pool import ImagePool
from kd3.pool.ingestion import ingest_with


@dataclass(frozen=True)
class Ingested:
    """A finished pool."""

    pool: ImagePool

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest."""
        return self.pool.manifest.to_dict()

    def __str__(self) -> str:
        return self.pool.summary()


def run(config: IngestConfig) -> Ingested:
    """Run the command line's settings."""
    if config.engine == "ray":
        return Ingested(ingest_on_ray(config))
    return Ingested(ingest_with(config))
