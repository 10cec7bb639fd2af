"""The whole measurement of shift: the pool, the reference if there is one, and the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kd3.evaluation.labelled import LabelledImages
from kd3.evaluation.shift_distances import MOST_FEATURES, FeatureShift, class_shifts, feature_distances, narrowed
from kd3.evaluation.shift_statistics import BatchNormShift, Kept, Opinions, TeacherPass, kept_by_selection, run_teacher
from kd3.evaluation.shift_verdict import Verdict, judge
from kd3.models.teacher import Teacher
from kd3.pool import Decoded, DecodeSettings, ImagePool, decode_records, list_records
from kd3.pool.checks import watched
from kd3.pool.image_pool import at_size
from kd3.pool.pool_files import NAME as MANIFEST
from kd3.runtime import console
from kd3.runtime.compute import Compute
from kd3.runtime.errors import KD3Error
from kd3.scoring.batches import PoolBatches
from kd3.scoring.scan import scan_batch, scored
from kd3.sources.files import shown
from kd3.sources.record import Record, counted

BATCH = 256


class Reference:
    """At most `limit` images of a folder, zip, tar or pool, drawn by seed if there are more.

    If every image lies in a folder named after a class of the teacher, the folders are labels.

    Raises:
        KD3Error: there is no image, or the pool's images have another size than the teacher's.
    """

    def __init__(self, source: str, teacher: Teacher, *, limit: int, seed: int, workers: int | None) -> None:
        self.source, self.limit, self.seed, self.workers = shown(source), limit, seed, workers
        self.settings = DecodeSettings.to_see(teacher.preparation)
        self.skipped: Counter[str] = Counter()
        self._labels: list[int] = []  # of each record
        self._pool: ImagePool | None = None
        self._seen: list[int] = []
        if (Path(source) / MANIFEST).is_file():
            where = f"the reference pool {source}"
            self._pool = at_size(ImagePool.open(source), teacher.preparation.size, who="the teacher", where=where)
            if self._pool.preparation != teacher.preparation:
                console.warn(
                    f"the reference pool {source} was made by --fit {self._pool.preparation.fit} and the other by "
                    f"--fit {teacher.preparation.fit}: where pictures are not square, that is a part of the shift"
                )
            found = len(self._pool)
        else:
            self._records, self._labels = _listed(source, teacher)
            found = len(self._records)
        if found == 0:
            raise KD3Error(f"the reference {self.source} holds no image; at least 2 are needed")
        self.chosen = drawn(found, limit, seed)

    @property
    def labels(self) -> np.ndarray | None:
        """The labels of the images that were yielded, (n,) int64; None if unlabelled."""
        return np.array(self._seen, dtype=np.int64) if self._labels else None

    def batches(self, compute: Compute) -> Iterator[tuple[Tensor, np.ndarray]]:
        """Yield uint8 images (B, 3, S, S) on the device, each with a mark that its features are wanted.

        Raises:
            KD3Error: fewer than two files are usable images; reported at the end.
        """
        count = 0
        self._seen, self.skipped = [], Counter()
        for images in self._from_pool(compute) if self._pool is not None else self._from_files(compute):
            count += len(images)
            yield images, np.ones(len(images), dtype=bool)
        if count < 2:
            words = counted(self.skipped)
            left_out = f" (left out: {words})" if words else ""
            raise KD3Error(
                f"the reference {self.source} has {count} usable image{'' if count == 1 else 's'}{left_out}; "
                f"at least 2 are needed"
            )

    def _from_pool(self, compute: Compute) -> Iterator[Tensor]:
        assert self._pool is not None
        with watched(self._pool):
            yield from PoolBatches(self._pool, compute).iterate(self.chosen, BATCH)

    def _from_files(self, compute: Compute) -> Iterator[Tensor]:
        pixels: list[np.ndarray] = []
        outcomes = decode_records([self._records[place] for place in self.chosen], self.settings, workers=self.workers)
        for place, outcome in zip(self.chosen, outcomes, strict=True):
            if not isinstance(outcome.result, Decoded):
                self.skipped[outcome.result.reason] += 1
                continue
            pixels.append(outcome.result.pixels)
            if self._labels:
                self._seen.append(self._labels[place])
            if len(pixels) == BATCH:
                yield torch.from_numpy(np.stack(pixels)).to(compute.device)
                pixels = []
        if pixels:
            yield torch.from_numpy(np.stack(pixels)).to(compute.device)


def drawn(count: int, limit: int, seed: int) -> np.ndarray:
    """Return `limit` of `count` positions without repetition, ascending; all if there are fewer."""
    if count <= limit:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, size=limit, replace=False))


def _listed(source: str, teacher: Teacher) -> tuple[list[Record], list[int]]:
    """Return the files, and the label of each; no labels if there are none of the teacher's classes."""
    records = list(list_records([source]))
    if not records:
        return records, []
    try:
        labelled = LabelledImages(source, preparation=teacher.preparation, class_names=teacher.classes)
    except KD3Error:
        return records, []  # reading will show whether any is an image
    for line in labelled.matching.lines():
        console.info(line)
    return labelled.records, labelled.labels


@dataclass(frozen=True)
class Measurement:
    """All results for a pool."""

    verdict: Verdict
    opinions: Opinions
    kept: Kept
    batch_norms: BatchNormShift | None
    reference_opinions: Opinions | None  # the same figures on the reference
    reference_batch_norms: BatchNormShift | None
    features: FeatureShift | None


def measure(
    teacher: Teacher,
    pool: ImagePool,
    reference: Reference | None,
    compute: Compute,
    *,
    limit: int,
    seed: int,
    sample_of: int | None = None,
) -> Measurement:
    """Measure a pool's distance from the training data of a teacher, which is on the device.

    Statistics and predictions use all images, at most `limit` of either side for features.
    `sample_of` is the size of the pool that `pool` was drawn from, where it was.
    The teacher runs a second time over the pool only if a class would keep no image.

    Raises:
        KD3Error: logits are not finite, or the reference has too few usable images.
    """
    other = None
    if reference is not None:  # first: the likeliest source of errors
        batches = reference.batches(compute)
        other = run_teacher(
            teacher, batches, compute, title="teacher on the reference images", total=len(reference.chosen)
        )
    ours = _run_on_pool(teacher, pool, compute, limit=0 if reference is None else limit, seed=seed)
    opinions = ours.watch.opinions()

    def again() -> Iterator[Tensor]:
        title = "teacher on the rare classes"
        positions = np.arange(len(pool))
        return scored(teacher, PoolBatches(pool, compute), positions, teacher.normalise, compute, title=title)

    kept = kept_by_selection(ours.watch.predictions(), teacher.classes, again)
    features = None
    if reference is not None and other is not None:
        features = _compared(teacher, ours, other, reference, seed)
    return Measurement(
        verdict=judge(opinions, kept, ours.batch_norms, features, pool_images=sample_of),
        opinions=opinions,
        kept=kept,
        batch_norms=ours.batch_norms,
        reference_opinions=other.watch.opinions() if other else None,
        reference_batch_norms=other.batch_norms if other else None,
        features=features,
    )


def _run_on_pool(teacher: Teacher, pool: ImagePool, compute: Compute, *, limit: int, seed: int) -> TeacherPass:
    positions = np.arange(len(pool))
    chosen = np.zeros(len(pool), dtype=bool)
    chosen[drawn(len(pool), limit, seed)] = True

    def batches() -> Iterator[tuple[Tensor, np.ndarray]]:
        start = 0
        for images in PoolBatches(pool, compute).iterate(positions, scan_batch(compute, pool.image_size)):
            yield images, chosen[start : start + len(images)]
            start += len(images)

    return run_teacher(teacher, batches(), compute, title="teacher on the pool", total=len(pool))


def _compared(teacher: Teacher, ours: TeacherPass, other: TeacherPass, reference: Reference, seed: int) -> FeatureShift:
    pool, theirs = narrowed(ours.features, other.features)
    width = ours.features.shape[1]
    what = f"{width} pooled features" if teacher.head else f"{width} logits, since no features could be found"
    if width > MOST_FEATURES:
        what += f", of which the {MOST_FEATURES} main directions"
    labels = reference.labels
    return FeatureShift(
        reference=reference.source,
        pool_images=len(pool),
        reference_images=len(theirs),
        features=what,
        distances=feature_distances(pool, theirs, seed=seed),
        per_class=[] if labels is None else class_shifts(pool, ours.predicted, theirs, labels, teacher.classes),
        skipped=dict(reference.skipped),
    )
