"""Jobs for `watch`: `python -m benchmarks.jobs distill|ingest ...` prints one line of JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import kd3


def distill(pool: str, out: str) -> dict[str, float]:
    """Distil a tiny network on a pool for a few steps: scoring and selection grow with the pool."""
    import torch

    from benchmarks.synthetic import SIZE, TinyNet

    torch.manual_seed(0)
    teacher = kd3.Teacher(TinyNet(8), mean=[0.5] * 3, std=[0.25] * 3, input_size=SIZE)
    start = time.perf_counter()
    options: dict[str, Any] = {"images": 2560, "device": "cpu", "precision": "32", "kd3": {"selection": "dynamic"}}
    run = kd3.distill(teacher, TinyNet(), kd3.ImagePool.open(pool), out, **options)
    return {"images": run.summary["pool_images"], "seconds": time.perf_counter() - start}


def ingest(shards: str, out: str, workers: str) -> dict[str, float]:
    """Ingest shards at the smallest size."""
    start = time.perf_counter()
    pool = kd3.ingest(shards, out, image_size=8, min_side=8, workers=int(workers))
    return {"images": len(pool), "seconds": time.perf_counter() - start}


if __name__ == "__main__":
    jobs: dict[str, Callable[..., dict[str, float]]] = {"distill": distill, "ingest": ingest}
    print(json.dumps(jobs[sys.argv[1]](*sys.argv[2:])))
