"""Images for comparing, calibrating and measuring an export: web images, since there are no others."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd3 import console
from kd3.config.yaml_text import load_yaml
from kd3.errors import KD3Error
from kd3.pool import Decoded, DecodeSettings, ImagePool, decode_records, list_records
from kd3.pool.manifest import NAME as MANIFEST
from kd3.pool.reasons import counted
from kd3.pool.sources.names import shown
from kd3.pool.watch import watched
from kd3.preparation import Preparation
from kd3.runs.folder import RunFolder
from kd3.runs.places import find
from kd3.training.pool_split import split_pool
from kd3.training.records import last_selection

NOISE = "none"


@dataclass(frozen=True)
class CheckImages:
    """uint8 RGB (N, 3, S, S), in two disjoint sets."""

    compared: Tensor  # the student was not trained on these, if the run is known
    calibrating: Tensor
    where: str  # in words


def images_of_run(run: RunFolder, preparation: Preparation, *, compare: int, calibrate: int) -> CheckImages:
    """Return held-out images of a run's pool, and others from its last selection.

    Raises:
        KD3Error: the pool has moved, or is another one.
    """
    config = _config(run)
    remedy = f"name images to check the export on: --images POOL_OR_FOLDER, or --images {NOISE} for noise"
    try:
        place = Path(find(run.path, "pool", str(config["pool"])))
    except KD3Error as problem:
        raise KD3Error(f"{str(problem).partition(';')[0]}; {remedy}") from None
    if not (place / MANIFEST).is_file():
        raise KD3Error(f"the pool {place} of the run {run.path} is not there; {remedy}")
    pool = ImagePool.open(place)
    _check(pool, preparation, str(place))
    train = config.get("train") or {}
    split = split_pool(pool, int(train.get("holdout", 1000)), share=float(train.get("share", 1.0)))
    last = last_selection(run)
    selected = split.train if last is None else last
    compared = _first(split.holdout, compare)
    if len(compared) < compare:
        compared = np.concatenate([compared, _first(np.setdiff1d(split.train, selected), compare - len(compared))])
    calibrating = np.setdiff1d(selected, compared)
    return CheckImages(
        _read(pool, compared),
        _read(pool, _drawn(calibrating, calibrate)),
        f"images of the pool {place.name} (held-out ones first)",
    )


def images_of(source: str, preparation: Preparation, *, compare: int, calibrate: int) -> CheckImages:
    """Return images of a pool or any source of `kd3 ingest`, with the student's preparation; noise for "none".

    Raises:
        KD3Error: the pool has images of another size, or there are fewer than three images.
    """
    size = preparation.size
    if source == NOISE:
        noise = torch.randint(0, 256, (compare, 3, size, size), generator=torch.Generator().manual_seed(0))
        return CheckImages(noise.to(torch.uint8), torch.empty(0, 3, size, size, dtype=torch.uint8), "noise")
    if (Path(source) / MANIFEST).is_file():
        pool = ImagePool.open(source)
        _check(pool, preparation, source)
        images, why = _read(pool, _drawn(np.arange(len(pool)), compare + calibrate)), ""
    else:
        images, left_out = _decoded(source, preparation, compare + calibrate)
        why = f" (left out: {left_out})" if left_out else ""
    if len(images) < 3:
        raise KD3Error(
            f"{shown(source)} holds {len(images)} usable images{why}; at least 3 are needed to check an export"
        )
    compared = max(2, min(compare, round(len(images) * compare / (compare + calibrate))))
    return CheckImages(images[:compared], images[compared:], f"images of {shown(source)}")


def _config(run: RunFolder) -> dict[str, Any]:
    config = load_yaml(run.config, what="configuration of the run")
    if not isinstance(config, dict) or "pool" not in config:
        raise KD3Error(f"{run.config} does not say which pool the run learned from")
    return config


def _check(pool: ImagePool, preparation: Preparation, where: str) -> None:
    size = preparation.size
    if pool.image_size != size:
        raise KD3Error(f"the student takes images of {size} pixels, but those of {where} have {pool.image_size}")
    if pool.preparation.fit != preparation.fit:
        console.warn(
            f"the pool {where} was made by --fit {pool.preparation.fit}, but the student gets pictures by "
            f"{preparation.fit}: the images of the comparison differ from those that it will see"
        )


def _decoded(source: str, preparation: Preparation, count: int) -> tuple[Tensor, str]:
    """Return images, and the skipped files in words."""
    found: list[np.ndarray] = []
    left_out: Counter[str] = Counter()
    size = preparation.size
    for outcome in decode_records(list_records([source]), DecodeSettings.to_see(preparation), workers=0):
        if isinstance(outcome.result, Decoded):
            found.append(outcome.result.pixels)
        else:
            left_out[outcome.result.reason] += 1
        if len(found) == count:
            break
    images = torch.from_numpy(np.stack(found)) if found else torch.empty(0, 3, size, size, dtype=torch.uint8)
    return images, counted(left_out)


def _read(pool: ImagePool, index: np.ndarray) -> Tensor:
    with watched(pool):
        return torch.from_numpy(pool.read(index))


def _first(index: np.ndarray, count: int) -> np.ndarray:
    return np.asarray(index[:count])


def _drawn(index: np.ndarray, count: int) -> np.ndarray:
    order = np.random.default_rng(0).permutation(len(index))[:count]
    return np.asarray(index[order])
