"""Images for estimating statistics or for recall: from a pool, or given ones without labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kd3 import console
from kd3.config.kinds import LEAST_RECALLED
from kd3.errors import KD3Error
from kd3.pool import Decoded, DecodeSettings, ImagePool, decode_records, list_records
from kd3.pool.decode import Rejected
from kd3.pool.kept_out import KnownImages, read_known
from kd3.pool.manifest import NAME as MANIFEST
from kd3.pool.perceptual_hash import looks, perceptual_hashes
from kd3.pool.reasons import counted
from kd3.pool.sources.names import shown
from kd3.pool.watch import watched
from kd3.preparation import Preparation
from kd3.training.randomness import seed_for

COUNTED = "count batch-norm statistics on"


@dataclass(frozen=True)
class ChosenImages:
    """Images in memory, and their origin."""

    images: Tensor  # uint8 (N, 3, S, S)
    keys: list[str]  # empty for a pool in memory
    positions: list[int] | None  # in the pool; None if from no pool
    where: str  # the pool or the source
    kept_out: int = 0  # images excluded by --keep-out


def known_images(sources: Sequence[str], preparation: Preparation, *, workers: int | None) -> list[KnownImages]:
    """Return the images of `--keep-out`, from any source, with the student's preparation.

    Raises:
        KD3Error: a source holds none, or cannot be read.
    """
    size, fit = preparation.size, preparation.fit
    return [read_known(source, image_size=size, fit=fit, workers=workers) for source in sources]


def of_pool(
    pool: ImagePool,
    among: np.ndarray,
    *,
    count: int,
    seed: int,
    known: Sequence[KnownImages] = (),
    use: str = COUNTED,
) -> ChosenImages:
    """Return `count` images of a pool, drawn by seed from these positions; all if there are fewer.

    Raises:
        KD3Error: fewer than 16 are left.
    """
    order = np.random.default_rng(seed_for(seed, "recall")).permutation(among)
    positions: list[int] = []
    parts: list[np.ndarray] = []
    left_out = 0
    while len(order) and len(positions) < count:
        here, order = order[: count - len(positions)], order[count - len(positions) :]
        images = pool.read(here)
        fresh = _unknown(images, known)
        left_out += int((~fresh).sum())
        positions += here[fresh].tolist()
        parts.append(images[fresh])
    where = str(pool.path or "in memory")
    _check_enough(len(positions), f"the pool {where}", left_out, use=use)
    keys = [] if pool.path is None else _keys(pool, positions)
    return ChosenImages(torch.from_numpy(np.concatenate(parts)), keys, positions, where, left_out)


def read_images(
    source: str,
    preparation: Preparation,
    *,
    limit: int,
    seed: int,
    known: Sequence[KnownImages] = (),
    workers: int | None = None,
    use: str = COUNTED,
) -> ChosenImages:
    """Return at most `limit` images of a pool or any source of `kd3 ingest`, drawn by seed; no label is read.

    `use` is their purpose, for messages.

    Raises:
        KD3Error: it is missing, a pool of images of another size, or holds fewer than 16 usable images.
    """
    if (Path(source) / MANIFEST).is_file():
        pool, size = ImagePool.open(source), preparation.size
        if pool.image_size != size:
            raise KD3Error(f"the student takes images of {size} pixels, but those of {source} have {pool.image_size}")
        if pool.preparation.fit != preparation.fit:
            console.warn(
                f"the pool {source} was made by --fit {pool.preparation.fit}, but the student gets pictures by "
                f"{preparation.fit}: these differ from those that it will see"
            )
        with watched(pool):
            return of_pool(pool, np.arange(len(pool)), count=limit, seed=seed, known=known, use=use)
    records, where = list(list_records([source])), shown(source)
    order = np.random.default_rng(seed_for(seed, "recall")).permutation(len(records))
    rejected: Counter[str] = Counter()
    keys: list[str] = []
    pixels: list[np.ndarray] = []
    left_out = 0
    settings = DecodeSettings.to_see(preparation)
    outcomes = decode_records((records[place] for place in order), settings, workers=workers)
    with console.progress("read images", min(limit, len(records)), "images") as bar, closing(outcomes):
        for outcome in outcomes:
            result = outcome.result
            if isinstance(result, Rejected):
                rejected[result.reason] += 1
            elif _is_known(result, known):
                left_out += 1
            else:
                keys.append(outcome.record.key)
                pixels.append(result.pixels)
                bar.advance()
            if len(pixels) == limit:
                break
    _check_enough(len(pixels), where, left_out, rejected, use=use)
    by_name = sorted(range(len(keys)), key=keys.__getitem__)
    images = torch.from_numpy(np.stack([pixels[place] for place in by_name]))
    return ChosenImages(images, [keys[place] for place in by_name], None, where, left_out)


def _unknown(images: np.ndarray, known: Sequence[KnownImages]) -> np.ndarray:
    """Return a mask of the images (n, 3, N, N) unlike all known ones: (n,) bool."""
    fresh = np.ones(len(images), dtype=bool)
    hashes = perceptual_hashes(images) if known else np.empty(0)
    for one in known:
        fresh[list(one.near(hashes, lambda places: looks(images[places])))] = False
    return fresh


def _is_known(image: Decoded, known: Sequence[KnownImages]) -> bool:
    if any(one.same_file(image.sha256) for one in known):
        return True
    return bool(known) and not bool(_unknown(image.pixels[None], known)[0])


def _check_enough(
    count: int, where: str, left_out: int, rejected: Counter[str] | None = None, *, use: str = COUNTED
) -> None:
    if count >= LEAST_RECALLED:
        return
    reasons = counted({**(rejected or {}), "like a test image": left_out})
    words = f" (left out: {reasons})" if reasons else ""
    raise KD3Error(
        f"{where} has {count} usable image{'' if count == 1 else 's'}{words}; at least {LEAST_RECALLED} are needed to "
        f"{use}"
    )


def _keys(pool: ImagePool, positions: Sequence[int]) -> list[str]:
    wanted = set(positions)
    keys = {place: str(key) for place, (key,) in enumerate(pool.index_rows(("key",))) if place in wanted}
    return [keys[position] for position in positions]
