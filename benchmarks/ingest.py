"""Group `ingest`: whole ingests beside a bare loop that only decodes and resizes, in as many processes."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import kd3
from benchmarks.alternate import Rate
from benchmarks.context import Context
from benchmarks.material import SIZE, enlarged, multiplied


def ingest(context: Context) -> dict[str, Any]:
    """Files a second: 64 x 64 JPEGs in shards, and 500 x 375 ones, both to 32 pixels."""
    shards = context.material.shards
    times = 1 if context.quick else 4
    small = multiplied(shards[: 4 if context.quick else None], context.work / "small", times)
    photos = enlarged(shards, context.work / "photos", 1_000 if context.quick else 3_000)
    large = multiplied(photos, context.work / "large", times)
    found = {"64x64": _compare(small, context), "500x375": _compare(large, context)}
    return {f"{size}, {side}": rate for size, sides in found.items() for side, rate in sides.items()}


def _compare(shards: list[Path], context: Context) -> dict[str, Any]:
    import loky

    from kd3.pool.decoding import usable_cores

    workers = usable_cores()
    rates = {"kd3": Rate(), "bound": Rate()}
    count = 0
    portions = [[str(shard) for shard in shards[i::workers]] for i in range(workers)]
    with ExitStack() as stack:
        # An executor of its own for each portion, which then stays in its process.
        executors = [stack.enter_context(loky.ProcessPoolExecutor(1)) for _ in portions]

        def everywhere(job: Callable[[list[str]], float]) -> list[float]:
            futures = [executor.submit(job, portion) for executor, portion in zip(executors, portions, strict=True)]
            return [future.result() for future in futures]

        everywhere(_load)
        os.sync()  # otherwise the first ingest would wait for these writes
        for number in range(2 if context.quick else 3):
            out = context.work / f"ingest{number}"
            start = time.perf_counter()
            pool = kd3.ingest([str(shard) for shard in shards], out, image_size=SIZE)
            count = pool.manifest.counts.found
            rates["kd3"].rounds.append(count / (time.perf_counter() - start))
            shutil.rmtree(out)
            rates["bound"].rounds.append(count / max(everywhere(_decode_all)))
    return {side: {**rate.to_dict(), "files": count, "workers": workers} for side, rate in rates.items()}


_loaded: dict[str, list[bytes]] = {}


def _load(shards: list[str]) -> float:
    """Read the files into the process, so that the bound does no reading."""
    files = []
    for shard in shards:
        with tarfile.open(shard) as archive:
            for member in archive:
                handle = archive.extractfile(member) if member.isfile() else None
                if handle is not None and not member.name.endswith((".json", ".txt")):
                    files.append(handle.read())
    _loaded[repr(shards)] = files
    return len(files)


def _decode_all(shards: list[str]) -> float:
    """Decode and resize every file and return the seconds."""
    files = _loaded[repr(shards)]
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for data in files:
            image: Image.Image = Image.open(io.BytesIO(data))
            if min(image.size) >= 4 * SIZE:
                image.draft("RGB", (2 * SIZE, 2 * SIZE))
            width, height = image.size
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
            image = image.convert("RGB")
            np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)))
    return time.perf_counter() - start
