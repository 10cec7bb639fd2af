"""The whole measurement: pool, optional reference, verdict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from kd3.compute import Compute
from kd3.domain_shift.batch_norms import BatchNormShift
from kd3.domain_shift.comparison import MOST_FEATURES, FeatureShift, class_shifts, feature_distances, narrowed
from kd3.domain_shift.look import Look, look
from kd3.domain_shift.opinions import Kept, Opinions, kept_by_selection
from kd3.domain_shift.reference import Reference, drawn
from kd3.domain_shift.verdict import Verdict, judge
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool
from kd3.training.pool_batches import PoolBatches
from kd3.training.scan import scan_batch, scored


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
        other = look(teacher, batches, compute, title="teacher looks at the reference", total=len(reference.chosen))
    ours = _look_at_pool(teacher, pool, compute, limit=0 if reference is None else limit, seed=seed)
    opinions = ours.watch.opinions()

    def again() -> Iterator[Tensor]:
        title = "teacher looks for the rare classes"
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


def _look_at_pool(teacher: Teacher, pool: ImagePool, compute: Compute, *, limit: int, seed: int) -> Look:
    positions = np.arange(len(pool))
    chosen = np.zeros(len(pool), dtype=bool)
    chosen[drawn(len(pool), limit, seed)] = True

    def batches() -> Iterator[tuple[Tensor, np.ndarray]]:
        start = 0
        for images in PoolBatches(pool, compute).iterate(positions, scan_batch(compute, pool.image_size)):
            yield images, chosen[start : start + len(images)]
            start += len(images)

    return look(teacher, batches(), compute, title="teacher looks at the pool", total=len(pool))


def _compared(teacher: Teacher, ours: Look, other: Look, reference: Reference, seed: int) -> FeatureShift:
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
