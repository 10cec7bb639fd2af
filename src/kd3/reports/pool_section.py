"""The section that needs teacher and student to run: their predictions on some of a run's pool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kd3.evaluation.shift_measure import Measurement, measure
from kd3.models.costs import SampleSize
from kd3.models.head import global_avg_pool
from kd3.models.student import Student
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool
from kd3.reports.charts import Grid, Tile
from kd3.reports.run_records import RunRecords
from kd3.runtime import console
from kd3.runtime.compute import Compute
from kd3.training.run_logger import read_selection, selection_files, split_of

TILES = 24  # of a grid
MAPPED = 1_500  # points of the map
BATCH = SampleSize(256, 32)


@dataclass(frozen=True)
class FeatureMap:
    """The teacher's pooled features (or logits) in two directions: (n, 2) each."""

    kept: np.ndarray
    refused: np.ndarray
    explained: tuple[float, float]  # share of the variance that each direction shows
    of: str  # the mapped values


@dataclass(frozen=True)
class PoolSection:
    """All results."""

    grids: list[Grid]
    map: FeatureMap | None
    shift: Measurement  # of a sample
    sampled: int  # images in it


@dataclass(frozen=True)
class _Probabilities:
    """Predictions of both networks: probabilities (n, K)."""

    teacher: np.ndarray
    student: np.ndarray


def pool_section(
    run: RunRecords, teacher: Teacher, student: Student, pool: ImagePool, compute: Compute, *, images: int
) -> PoolSection:
    """Run both networks over at most `images` images of the pool, and the few displayed ones."""
    compute.place(teacher)
    compute.place(student)
    split = split_of(run.folder, pool)
    draw = np.random.default_rng(0)
    sample = np.sort(draw.permutation(split.train)[:images])
    held_out = split.holdout[:images]
    selections = [read_selection(path, images=len(pool)) for path in selection_files(run.folder)]
    drawn = ImagePool.from_array(pool.read(sample))
    shift = measure(teacher, drawn, None, compute, limit=0, seed=0, sample_of=len(pool))
    grids = _selection_grids(run, selections, split.train, teacher, student, pool, compute, draw)
    grids.append(_disagreements(run, np.union1d(sample, held_out), teacher, student, pool, compute))
    return PoolSection(
        grids=[grid for grid in grids if grid.tiles],
        map=_map(sample[:: max(1, len(sample) // MAPPED)], selections, teacher, pool, compute),
        shift=shift,
        sampled=len(sample),
    )


def _selection_grids(
    run: RunRecords,
    selections: Sequence[np.ndarray],
    train: np.ndarray,
    teacher: Teacher,
    student: Student,
    pool: ImagePool,
    compute: Compute,
    draw: np.random.Generator,
) -> list[Grid]:
    if not selections or len(selections[-1]) == len(train) == len(selections[0]):
        return []
    first, last = selections[0], selections[-1]
    ever = np.unique(np.concatenate(selections))
    wanted = [
        ("Kept early, refused late", "In the first selection and not in the last.", np.setdiff1d(first, last)),
        ("Refused early, kept late", "Not in the first selection, but in the last.", np.setdiff1d(last, first)),
        ("Kept throughout", "In the first selection and in the last.", np.intersect1d(first, last)),
        ("Never kept", "In no selection.", np.setdiff1d(train, ever)),
    ]
    grids = []
    for title, about, positions in wanted:
        shown = np.sort(draw.permutation(positions)[:TILES])
        predicted = _probabilities(shown, teacher, student, pool, compute)
        captions = [_opinion(run.classes, row) for row in predicted.teacher]
        share = f"{len(positions):,} of {len(train):,} images"
        grids.append(
            Grid(
                title, f"{about} {share}; some of them, with the teacher's predictions.", _tiles(pool, shown, captions)
            )
        )
    return grids


def _disagreements(
    run: RunRecords, positions: np.ndarray, teacher: Teacher, student: Student, pool: ImagePool, compute: Compute
) -> Grid:
    """Return the disagreements with the most confident teacher predictions."""
    predicted = _probabilities(positions, teacher, student, pool, compute)
    theirs, own = predicted.teacher.argmax(1), predicted.student.argmax(1)
    rows = np.arange(len(positions))
    surprise = predicted.teacher[rows, theirs] - predicted.student[rows, theirs]
    order = [place for place in np.argsort(-surprise) if theirs[place] != own[place]][:TILES]
    captions = [
        " | student: ".join(_opinion(run.classes, one[place]) for one in (predicted.teacher, predicted.student))
        for place in order
    ]
    return Grid(
        "Most disagreed on",
        f"Of {len(positions):,} images, those of whose class the teacher is surest and the student least.",
        _tiles(pool, positions[order], captions),
    )


def _map(
    positions: np.ndarray, selections: Sequence[np.ndarray], teacher: Teacher, pool: ImagePool, compute: Compute
) -> FeatureMap | None:
    """Return the two main directions (PCA): unlike UMAP, it preserves distances of the features."""
    if len(positions) < 3:
        return None
    features = _features(positions, teacher, pool, compute)
    features = features - features.mean(axis=0)
    _, strengths, directions = np.linalg.svd(features, full_matrices=False)
    if len(strengths) < 2 or not strengths[0]:
        return None
    # The sign of a direction is arbitrary: the largest part is made positive.
    signs = np.sign(directions[np.arange(2), np.abs(directions[:2]).argmax(axis=1)])
    points = features @ (directions[:2] * signs[:, None]).T
    share = strengths**2 / (strengths**2).sum()
    kept = np.isin(positions, selections[-1]) if selections else np.ones(len(positions), dtype=bool)
    what = f"{features.shape[1]} pooled features" if teacher.head else f"{features.shape[1]} logits"
    return FeatureMap(points[kept], points[~kept], (float(share[0]), float(share[1])), what)


def _probabilities(
    positions: np.ndarray, teacher: Teacher, student: Student, pool: ImagePool, compute: Compute
) -> _Probabilities:
    both: tuple[list[Tensor], list[Tensor]] = ([], [])
    for images in _batches(positions, pool, compute, title="predictions of both networks"):
        for network, rows in zip((teacher, student), both, strict=True):
            rows.append(network(network.normalise(images)).float().softmax(dim=1).cpu())  # type: ignore[operator]
    empty = torch.empty(0, teacher.num_classes)
    first, second = (torch.cat([empty, *rows]).numpy() for rows in both)
    return _Probabilities(first, second)


def _features(positions: np.ndarray, teacher: Teacher, pool: ImagePool, compute: Compute) -> np.ndarray:
    rows = []
    for images in _batches(positions, pool, compute, title="features of the teacher"):
        normalised = teacher.normalise(images)
        values = global_avg_pool(teacher.outputs(normalised).features) if teacher.head else teacher(normalised)
        rows.append(values.double().cpu().numpy())
    return np.concatenate(rows)


def _batches(positions: np.ndarray, pool: ImagePool, compute: Compute, *, title: str) -> Iterator[Tensor]:
    size = BATCH.of(pool.image_size)
    with torch.inference_mode(), console.progress(title, len(positions), "images") as bar:
        for start in range(0, len(positions), size):
            images = torch.from_numpy(pool.read(positions[start : start + size])).to(compute.device)
            yield images.contiguous(memory_format=torch.channels_last)
            bar.advance(len(images))


def _opinion(classes: Sequence[str], probabilities: np.ndarray) -> str:
    label = int(probabilities.argmax())
    return f"{classes[label]} {100 * probabilities[label]:.0f}%"


def _tiles(pool: ImagePool, positions: np.ndarray, captions: Sequence[str]) -> list[Tile]:
    images = pool.read(positions)
    return [
        Tile(f"pool image {position}", caption, pixels)
        for position, caption, pixels in zip(positions, captions, images, strict=True)
    ]
