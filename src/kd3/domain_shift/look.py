"""One pass of the teacher over images: batch-norm statistics, predictions, and features of some."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kd3 import console
from kd3.compute import Compute
from kd3.domain_shift.batch_norms import BatchNormShift, BatchNormWatch, summed_up
from kd3.domain_shift.opinions import OpinionWatch
from kd3.errors import KD3Error
from kd3.models.head import pool
from kd3.models.teacher import Teacher


@dataclass(frozen=True)
class Look:
    """Results of one pass."""

    watch: OpinionWatch
    batch_norms: BatchNormShift | None  # None: no running statistics in the teacher
    features: np.ndarray  # (n, d) float64: pooled features of the chosen images; (0, 0) if none
    predicted: np.ndarray  # (n,) int64: the teacher's predicted class


def look(
    teacher: Teacher,
    batches: Iterable[tuple[Tensor, np.ndarray]],
    compute: Compute,
    *,
    title: str,
    total: int | None,
) -> Look:
    """Run the teacher once over batches of images and a mask of those whose features are wanted.

    Batches are uint8 (B, 3, S, S) on the device and bool (B,). Without a shared head the logits
    serve as features. Memory: a few bytes per image, and the requested features.

    Raises:
        KD3Error: some logits are not finite.
    """
    norms, said = BatchNormWatch(teacher.module), OpinionWatch(teacher.classes)
    features: list[np.ndarray] = []
    predicted: list[np.ndarray] = []
    with console.progress(title, total, "images") as bar, norms.watching():
        for images, chosen in batches:
            with torch.inference_mode(), compute.autocast():
                values, logits = _run(teacher, teacher.normalise(images.contiguous(memory_format=torch.channels_last)))
            if not bool(torch.isfinite(logits).all()):
                raise KD3Error("the teacher's logits are not finite on some images; use --precision 32")
            said.add(logits)
            if chosen.any():
                index = torch.from_numpy(np.flatnonzero(chosen)).to(values.device)
                features.append(values[index].double().cpu().numpy())
                predicted.append(logits[index].argmax(dim=1).cpu().numpy())
            bar.advance(len(images))
    return Look(
        watch=said,
        batch_norms=summed_up(norms.layers()),
        features=np.concatenate(features) if features else np.empty((0, 0)),
        predicted=np.concatenate(predicted) if predicted else np.empty(0, dtype=np.int64),
    )


def _run(teacher: Teacher, images: Tensor) -> tuple[Tensor, Tensor]:
    if teacher.head is None:
        logits = teacher(images).float()
        return logits, logits
    outputs = teacher.outputs(images)
    return pool(outputs.features.float()), outputs.logits.float()
