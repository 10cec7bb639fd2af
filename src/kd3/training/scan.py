"""Score pool images with a network: evaluation mode, plain views, no graph."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from kd3 import console
from kd3.compute import Compute
from kd3.errors import KD3Error
from kd3.models.preprocessing import Normalisation
from kd3.pool import ImagePool

SCAN_BATCH = 256


def normalised_batches(
    pool: ImagePool,
    positions: np.ndarray,
    normalise: Normalisation,
    compute: Compute,
    *,
    size: int = SCAN_BATCH,
) -> Iterator[Tensor]:
    """Yield pool images in order, (B, 3, S, S), normalised, on the device, in channels_last."""
    for start in range(0, len(positions), size):
        images = torch.from_numpy(pool.read(positions[start : start + size])).to(compute.device)
        yield normalise(images.contiguous(memory_format=torch.channels_last))


def score(
    network: nn.Module,
    pool: ImagePool,
    positions: np.ndarray,
    normalise: Normalisation,
    compute: Compute,
    *,
    title: str | None = None,
) -> Tensor:
    """Return a network's logits of pool images, (N, K) float32 on the CPU.

    The network is put into evaluation mode for it and back afterwards.

    Raises:
        KD3Error: some logits are not finite.
    """
    was_training = network.training
    network.eval()
    logits = []
    try:
        with console.progress(title or "", len(positions), "images", hidden=title is None) as bar:
            for images in normalised_batches(pool, positions, normalise, compute):
                with torch.inference_mode(), compute.autocast():
                    logits.append(network(images).float().cpu())
                bar.advance(len(images))
    finally:
        network.train(was_training)
    scores = torch.cat(logits)
    if not torch.isfinite(scores).all():
        raise KD3Error(
            f"the {type(network).__name__.lower()}'s logits are not finite on some pool images; use --precision 32, or "
            f"a lower --lr in another --out"
        )
    return scores


def agreement(student_logits: Tensor, teacher_logits: Tensor) -> float:
    """Return the share of images on which both networks' first classes are the same, in percent."""
    return float((student_logits.argmax(1) == teacher_logits.argmax(1)).double().mean() * 100)
