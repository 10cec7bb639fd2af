"""Groups `memory` and `scaling`: time may grow in proportion to the pool, memory may not."""

from __future__ import annotations

import shutil
from typing import Any

from benchmarks.context import Context
from benchmarks.material import make_shards
from benchmarks.synthetic import SIZE, write_pool
from benchmarks.watch import watched


def memory(context: Context) -> dict[str, Any]:
    """Return the anonymous memory of a distillation per additional image, and the peaks."""
    sizes = (20_000, 220_000) if context.quick else (20_000, 1_020_000)
    peaks = {images: _distilled(context, images) for images in sizes}
    small, large = sizes
    more = 1e6 * (peaks[large]["anonymous_mb"] - peaks[small]["anonymous_mb"])
    return {"bytes_per_image": round(more / (large - small), 1), "peaks": {f"{n:,}": peaks[n] for n in sizes}}


def scaling(context: Context) -> dict[str, Any]:
    """Return microseconds per image and peak memory over pools of a thousand to a million images."""
    top = 4 if context.quick else 6
    rows: dict[str, Any] = {}
    for power in range(3, top + 1):
        images = 10**power
        rows[f"distill, {images:,}"] = _per_image(_distilled(context, images))
        shards = context.work / f"tiny{images}"
        make_shards(shards, images, width=16, height=16, per_shard=10_000)
        for workers in (1, 2) if images < 10**6 else (2,):  # a million with one takes minutes more
            out = context.work / "tinypool"
            done = watched("benchmarks.jobs", "ingest", str(shards), str(out), str(workers))
            rows[f"ingest, {images:,}, {workers} workers"] = _per_image(done)
            shutil.rmtree(out)
        shutil.rmtree(shards)
    return rows


def _distilled(context: Context, images: int) -> dict[str, Any]:
    pool, out = context.work / f"noise{images}", context.work / "noiserun"
    write_pool(pool, images)
    done = watched("benchmarks.jobs", "distill", str(pool), str(out))
    shutil.rmtree(pool)
    shutil.rmtree(out)
    return done


def _per_image(done: dict[str, Any]) -> dict[str, Any]:
    return {**done, "microseconds_per_image": round(1e6 * done["seconds"] / done["images"], 1), "pixels": SIZE}
