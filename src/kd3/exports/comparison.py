"""Every file of an export beside the student: the same images, the largest difference, the speed of each."""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kd3.config.records import Preparation
from kd3.config.run_records import read_origin, read_settings
from kd3.pool import Decoded, DecodeSettings, ImagePool, decode_records, list_records
from kd3.pool.checks import watched
from kd3.pool.image_pool import at_size
from kd3.pool.pool_files import NAME as MANIFEST
from kd3.runtime import console
from kd3.runtime.errors import KD3Error, in_brief
from kd3.runtime.run_folder import RunFolder, find
from kd3.sources.files import shown
from kd3.sources.record import counted
from kd3.training.run_logger import split_of, trained_on

NOISE = "none"
FEWEST = 3  # images to check an export on: two that are compared, and another


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
    settings, _ = read_settings(run)
    remedy = f"name images to check the export on: --images POOL_OR_FOLDER, or --images {NOISE} for noise"
    try:
        place = Path(find(run.path, "pool", settings.pool))
    except KD3Error as problem:
        raise KD3Error(f"{str(problem).partition(';')[0]}; {remedy}") from None
    if not (place / MANIFEST).is_file():
        raise KD3Error(f"the pool {place} of the run {run.path} is not there; {remedy}")
    pool = ImagePool.open(place)
    if read_origin(run).get("pool") != pool.content_hash:
        raise KD3Error(f"the pool {place} is not the one that the run {run.path} learned from; {remedy}")
    pool = _fitting(pool, preparation, str(place))
    split, selected = split_of(run, pool), trained_on(run, pool)
    compared = np.concatenate([split.holdout, np.setdiff1d(split.train, selected)])[:compare]
    calibrating = np.setdiff1d(selected, compared)
    return CheckImages(
        _read(pool, compared),
        _read(pool, _drawn(calibrating, calibrate)),
        f"images of the pool {place.name} (held-out ones first)",
    )


def images_of(source: str, preparation: Preparation, *, compare: int, calibrate: int) -> CheckImages:
    """Return images of a pool or any source of `kd3 ingest`, with the student's preparation; noise for "none".

    Raises:
        KD3Error: the pool has smaller images, or there are fewer than three images.
    """
    size, count = preparation.size, max(FEWEST, compare + calibrate)
    if source == NOISE:
        noise = torch.randint(0, 256, (compare, 3, size, size), generator=torch.Generator().manual_seed(0))
        return CheckImages(noise.to(torch.uint8), torch.empty(0, 3, size, size, dtype=torch.uint8), "noise")
    if (Path(source) / MANIFEST).is_file():
        pool = _fitting(ImagePool.open(source), preparation, source)
        images, why = _read(pool, _drawn(np.arange(len(pool)), count)), ""
    else:
        images, left_out = _decoded(source, preparation, count)
        why = f" (left out: {left_out})" if left_out else ""
    if len(images) < FEWEST:
        raise KD3Error(
            f"{shown(source)} holds {len(images)} usable images{why}; at least {FEWEST} are needed to check an export"
        )
    compared = max(2, min(compare, round(len(images) * compare / (compare + calibrate))))
    return CheckImages(images[:compared], images[compared:], f"images of {shown(source)}")


def _fitting(pool: ImagePool, preparation: Preparation, where: str) -> ImagePool:
    pool = at_size(pool, preparation.size, who="the student", where=where)
    if pool.preparation.fit != preparation.fit:
        console.warn(
            f"the pool {where} was made by --fit {pool.preparation.fit}, but the student gets pictures by "
            f"{preparation.fit}: the images of the comparison differ from those that it will see"
        )
    return pool


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


def _drawn(index: np.ndarray, count: int) -> np.ndarray:
    order = np.random.default_rng(0).permutation(len(index))[:count]
    return np.asarray(index[order])


TOLERANCE = 1e-4  # of the largest logit, or absolute where logits are small
SIZES = (1, 7, 64)  # of batches: detects a fixed batch size
TURNS = 7

Runner = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Parity:
    """Difference between a file's logits and the student's own."""

    images: int
    largest_difference: float
    largest_logit: float
    same_class: float  # percent

    @property
    def holds(self) -> bool:
        """Return whether both are the same function, up to rounding."""
        return self.largest_difference <= TOLERANCE * max(1.0, self.largest_logit)


def parity(expected: Tensor, run: Runner, inputs: Tensor, *, what: str) -> Parity:
    """Compare an export's logits with the student's, in batches of several sizes.

    Shapes: expected (N, K), inputs (N, 3, S, S).

    Raises:
        KD3Error: the export does not run, or has other outputs; the sentence names `what`.
    """
    try:
        found = in_batches(run, inputs)
    except Exception as problem:  # onnxruntime, TorchScript: each has its own errors
        raise KD3Error(f"{what} was written but does not run: {in_brief(problem)}") from problem
    if found.shape != expected.shape:
        raise KD3Error(f"{what} puts out {tuple(found.shape)} where the student gives {tuple(expected.shape)}")
    difference = (found - expected).abs().max()
    return Parity(
        images=len(expected),
        largest_difference=float(difference) if torch.isfinite(found).all() else float("inf"),
        largest_logit=float(expected.abs().max()),
        same_class=agreement(found, expected),
    )


def in_batches(run: Runner, inputs: Tensor) -> Tensor:
    """Return all logits; the first images alone and in a small batch, the others in batches of 64."""
    one, few, many = SIZES
    parts = [inputs[:one], inputs[one : one + few], *_split(inputs[one + few :], many)]
    return torch.cat([run(part) for part in parts if len(part)])


def _split(images: Tensor, size: int) -> list[Tensor]:
    return [images[start : start + size] for start in range(0, len(images), size)]


def agreement(logits: Tensor, others: Tensor) -> float:
    """Return the share of images with equal predictions, in percent."""
    return 100 * float((logits.argmax(1) == others.argmax(1)).double().mean())


def milliseconds(runners: Mapping[str, Runner], inputs: Tensor) -> dict[str, dict[int, float]]:
    """Time each for batches of 1 and 64: medians of alternating turns.

    Turns alternate, so that a slower machine slows all of them.
    """
    sizes = [size for size in (1, 64) if size <= len(inputs)]
    found: dict[str, dict[int, list[float]]] = {name: {size: [] for size in sizes} for name in runners}
    for size in sizes:
        batch = inputs[:size]
        for run in runners.values():
            run(batch)
        for _ in range(TURNS):
            for name, run in runners.items():
                repeats = max(1, 16 // size)
                start = time.perf_counter()
                for _ in range(repeats):
                    run(batch)
                found[name][size].append(1000 * (time.perf_counter() - start) / repeats)
    return {
        name: {size: round(statistics.median(times), 3) for size, times in rows.items()} for name, rows in found.items()
    }


@dataclass(frozen=True)
class Written:
    """A file of the export, and its measurements."""

    file: str
    reader: str  # its runtime
    bytes: int
    same_class: float  # percent of the compared images with the student's prediction
    largest_difference: float | None  # of a logit; None for 8 bits
    milliseconds: Mapping[int, float]  # by batch size
    teacher_agreement: float | None = None  # percent


class Comparison:
    """Gathers the measurements of each file.

    Args:
        expected: the student's logits, (N, K).
        teacher: the teacher's, or None.
        where: description of the images.
    """

    def __init__(self, expected: Tensor, teacher: Tensor | None, where: str) -> None:
        self.expected, self.teacher, self.where = expected, teacher, where
        self._written: list[tuple[Written, Runner, Tensor]] = []

    def add(self, path: Path, reader: str, run: Runner, inputs: Tensor, *, exact: bool = True) -> None:
        """Compare a written file; `inputs` are the images in its input format.

        Raises:
            KD3Error: it does not run, or differs from the student though it should be `exact`.
        """
        found = parity(self.expected, run, inputs, what=path.name)
        if exact and not found.holds:
            raise KD3Error(
                f"{path.name} is not the student: logits differ by up to {found.largest_difference:.2g} (of "
                f"{found.largest_logit:.2g}; allowed is {TOLERANCE:g} of it) on {found.images:,} {self.where}; nothing "
                f"was written"
            )
        written = Written(
            file=path.name + ("/" if path.is_dir() else ""),
            reader=reader,
            bytes=_size(path),
            same_class=found.same_class,
            largest_difference=found.largest_difference if exact else None,
            milliseconds={},
            teacher_agreement=None if self.teacher is None else agreement(in_batches(run, inputs), self.teacher),
        )
        self._written.append((written, run, inputs))

    def timed(self) -> list[Written]:
        """Return all files with their times; those with the same input ran in turns."""
        times: dict[str, dict[int, float]] = {}
        for given in {id(inputs): inputs for _, _, inputs in self._written}.values():
            group = {one.file: run for one, run, inputs in self._written if inputs is given}
            times |= milliseconds(group, given)
        return [replace(one, milliseconds=times[one.file]) for one, _, _ in self._written]


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else os.path.getsize(path)
