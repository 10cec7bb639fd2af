"""Ingest a crawl on a Ray cluster: one part per worker, then a merge."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd3 import console
from kd3.cluster.ray_tasks import Done, Piece, cores, do_all, ray_cluster
from kd3.config.pool_commands import IngestConfig
from kd3.errors import KD3Error
from kd3.pool.image_pool import ImagePool
from kd3.pool.ingestion import NothingUsableError, ingest_request
from kd3.pool.manifest import NAME, read_manifest
from kd3.pool.merge import merge_pools
from kd3.pool.output_folder import check_settings
from kd3.storage.lock import exclusive

PARTS_A_CORE = 4  # so that a slow or restarted part does not delay the rest
SUFFIX = ".parts"


def ingest_on_ray(config: IngestConfig) -> ImagePool:
    """Make a pool of a crawl on a cluster and return it; the same pool as one machine makes, to the content hash.

    The parts are in `OUT.parts` until the merge; after a kill the next call continues with them.

    Raises:
        KD3Error: a part failed, and the others are kept; or the output belongs to something else.
    """
    folder = Path(config.out)
    request = ingest_request(config)
    if (folder / NAME).is_file():
        check_settings(folder, read_manifest(folder).settings.get("ingest", {}), request)
        console.say(f"pool {folder} is finished; there is nothing to do")
        return ImagePool.open(folder)
    parts = folder.with_name(folder.name + SUFFIX)
    with ray_cluster() as ray:
        number = _number_of_parts(parts) or PARTS_A_CORE * cores(ray)
        names = [f"{part}-of-{number}" for part in range(1, number + 1)]
        parts.mkdir(parents=True, exist_ok=True)
        with exclusive(parts / ".lock", what=f"pool {folder}"):
            for name in names:
                (parts / name).mkdir(exist_ok=True)  # records the number of parts
            pieces = [_piece(config, parts, name) for name in names]
            problems: list[Done] = []
            with console.progress("ingest", number, "parts") as bar:
                for done in do_all(ray, pieces):
                    if done.problem is not None:
                        problems.append(done)
                    bar.advance(1, done.name)
        pool = _merged(parts, names, problems, folder, request)
    shutil.rmtree(parts)
    return pool


def _merged(
    parts: Path, names: Sequence[str], problems: Sequence[Done], folder: Path, request: dict[str, Any]
) -> ImagePool:
    """Return the pool of the parts; parts without images are ignored."""
    failed = [done for done in problems if done.kind != NothingUsableError.__name__]
    if failed or len(problems) == len(names):
        worst = (failed or problems)[0]
        raise KD3Error(f"part {worst.name} of the crawl: {worst.problem}")
    empty = {done.name for done in problems}
    for done in problems:
        console.warn(f"part {done.name} of the crawl adds nothing: {done.problem}")
    return merge_pools([parts / name for name in names if name not in empty], folder, ingest=request)


def _number_of_parts(parts: Path) -> int | None:
    """Return the number of parts of an earlier call."""
    found = [entry.name.partition("-of-")[2] for entry in parts.glob("*-of-*")] if parts.is_dir() else []
    return int(found[0]) if found else None


def _piece(config: IngestConfig, parts: Path, name: str) -> Piece:
    values: dict[str, Any] = config.model_dump(exclude={"engine", "shard", "workers", "out"})
    values |= {"out": str(parts / name), "shard": name.replace("-of-", "/"), "workers": 1}
    return Piece(name, "kd3.pool.ingestion:ingest", values, parts / f"{name}.txt")
