"""Score pool images with a network: evaluation mode, plain views, no graph."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from kd3 import console
from kd3.compute import Compute
from kd3.errors import KD3Error
from kd3.losses.soft_targets import soft_target_divergence
from kd3.models.preprocessing import Normalisation
from kd3.training.pool_batches import PoolBatches

SCAN_BATCH = 256
DEVICE_SCAN_BATCH = 2048  # of an accelerator, for images of up to 64 x 64 pixels


def scan_batch(compute: Compute, side: int) -> int:
    """Return the batch size for scoring images of this side in pixels."""
    if compute.device.type != "cuda":
        return SCAN_BATCH
    return max(SCAN_BATCH, min(DEVICE_SCAN_BATCH, DEVICE_SCAN_BATCH * 64 * 64 // side**2))


def scored(
    network: nn.Module,
    batches: PoolBatches,
    positions: np.ndarray,
    normalise: Normalisation,
    compute: Compute,
    *,
    title: str | None = None,
) -> Iterator[Tensor]:
    """Yield a network's logits of pool images in order, (B, K) float32 on the device.

    The network runs in evaluation mode, and its mode is restored afterwards. Several ranks share the batches, and each
    gets all logits; too few batches to share are computed by every rank.

    Raises:
        KD3Error: some logits are not finite; reported at the end, so that no batch waits for the check.
    """
    ranks = compute.ranks
    was_training = network.training
    network.eval()
    finite: Tensor | None = None
    try:
        with console.progress(title or "", len(positions), "images", hidden=title is None) as bar:
            size = scan_batch(compute, batches.pool.image_size)
            shared = len(positions) // (size * ranks.count) * size * ranks.count if ranks.count > 1 else 0
            own = positions[:shared].reshape(-1, ranks.count, size)[:, ranks.rank].ravel()
            wanted = np.concatenate([own, positions[shared:]])
            for number, images in enumerate(batches.iterate(wanted, size)):
                with torch.inference_mode(), compute.autocast():
                    logits = network(normalise(images.contiguous(memory_format=torch.channels_last))).float()
                    if number * size < len(own):
                        logits = ranks.gather(logits)
                    sound = torch.isfinite(logits).all()
                    finite = sound if finite is None else finite & sound
                yield logits
                bar.advance(len(logits))
    finally:
        network.train(was_training)
    if finite is not None and not finite:
        raise KD3Error(
            f"the {type(network).__name__.lower()}'s logits are not finite on some pool images; use --precision 32, or "
            f"a lower --lr in another --out"
        )


def score(
    network: nn.Module,
    batches: PoolBatches,
    positions: np.ndarray,
    normalise: Normalisation,
    compute: Compute,
) -> Tensor:
    """Return a network's logits of a few pool images, (N, K) float32 on the CPU; see `scored`."""
    return torch.cat(list(scored(network, batches, positions, normalise, compute))).cpu()


def agreement(student_logits: Tensor, teacher_logits: Tensor) -> float:
    """Return the share of images for which both networks predict the same class, in percent."""
    return float((student_logits.argmax(1) == teacher_logits.argmax(1)).double().mean() * 100)


def divergence(student_logits: Tensor, teacher_logits: Tensor) -> float:
    """Return the mean KL(teacher || student) of their probabilities, in nats, at least 0; finer than the agreement.

    Shapes: (N, K) both -> a number.
    """
    return float(soft_target_divergence(student_logits.double(), teacher_logits.double(), temperature=1.0))


def is_as_good(agreement: float, highest: float, *, images: int) -> bool:
    """Return whether an agreement is within one standard error of the highest one, on so many images.

    So the last student of a run is kept unless an earlier one was clearly better. Between late students the agreement
    on a thousand images differs by chance, and the later one had the lower learning rate.
    Both in percent. Source: the one-standard-error rule (Breiman et al., Classification and Regression Trees, 1984).
    """
    share = highest / 100
    return agreement >= highest - 100 * math.sqrt(max(0.0, share * (1 - share)) / images)


def commonest_class(student_logits: Tensor, teacher_logits: Tensor) -> dict[str, float]:
    """Return the shares of images that student and teacher predict as the student's commonest class."""
    said = student_logits.argmax(dim=1)
    commonest = said.mode().values
    return {
        "commonest": round(float((said == commonest).double().mean()), 4),
        "teachers_share_of_it": round(float((teacher_logits.argmax(dim=1) == commonest).double().mean()), 4),
    }
