"""Images like the teacher's training data, from files or from a pool; few are enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kd3 import console
from kd3.compute import Compute
from kd3.errors import KD3Error
from kd3.measure.labelled import LabelledImages
from kd3.models.teacher import Teacher
from kd3.pool import Decoded, DecodeSettings, ImagePool, decode_records, list_records
from kd3.pool.manifest import NAME as MANIFEST
from kd3.pool.reasons import counted
from kd3.pool.record import Record
from kd3.pool.sources.names import shown
from kd3.pool.watch import watched
from kd3.training.pool_batches import PoolBatches

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
            self._pool = ImagePool.open(source)
            if self._pool.image_size != teacher.input_size:
                raise KD3Error(
                    f"the reference pool {source} has images of {self._pool.image_size} pixels but the teacher takes "
                    f"{teacher.input_size}"
                )
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
        labelled = LabelledImages(
            source, preparation=teacher.preparation, num_classes=teacher.num_classes, class_names=teacher.classes
        )
    except KD3Error:
        return records, []  # reading will show whether any is an image
    for line in labelled.matching.lines():
        console.say(line)
    return labelled.records, labelled.labels
