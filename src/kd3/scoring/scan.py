"""Pool images scored with networks: evaluation mode, plain views, no graph; each image's last prediction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from kd3.losses import soft_target_divergence
from kd3.models.fold import Pair, fold
from kd3.models.head import evaluating
from kd3.models.preprocessing import Normalisation
from kd3.models.student import Student
from kd3.runtime import console
from kd3.runtime.compute import Compute
from kd3.runtime.errors import KD3Error
from kd3.scoring.batches import PoolBatches, sent
from kd3.selection import Predictions, blend_logits, predict

NEVER = -1


class LatestPredictions:
    """Latest predictions, updated as images are scored, on the scoring device.

    Args:
        count: number of training images N.
        num_classes: number of classes K.
        device: of the predictions; noting them there needs no synchronisation.
    """

    def __init__(self, count: int, num_classes: int, device: torch.device) -> None:
        self.num_classes = num_classes
        self.round = 0  # the present one
        self.confidence = torch.zeros(count, device=device)
        self.label = torch.zeros(count, dtype=torch.int32, device=device)
        self.seen = torch.full((count,), NEVER, dtype=torch.int32, device=device)

    @property
    def is_empty(self) -> bool:
        """Whether some image has no prediction yet."""
        return bool((self.seen == NEVER).any())

    def note(self, index: Tensor, predictions: Predictions) -> None:
        """Store the predictions of the images at these positions. Shapes: index (n,) int64."""
        index = sent(index, self.seen.device)
        self.confidence[index] = sent(predictions.confidence, self.seen.device).to(self.confidence)
        self.label[index] = sent(predictions.label, self.seen.device).to(self.label)
        self.seen[index] = self.round

    def oldest(self, share: float) -> Tensor:
        """Return a share of the images not yet scored in the present round, the least recently scored.

        Shapes: -> (n,) int64, ascending, on the CPU; empty if all were scored.
        """
        seen = self.seen.cpu()
        unseen = (seen < self.round).nonzero().flatten()
        wanted = -int(-len(unseen) * share // 1)
        return unseen[torch.sort(seen[unseen], stable=True).indices[:wanted]].sort().values

    def predictions(self) -> Predictions:
        """Return the last prediction for each image, on the CPU."""
        return Predictions(self.confidence.cpu(), self.label.cpu(), self.num_classes)

    def state(self) -> dict[str, Tensor]:
        """Return the state for a checkpoint, without a copy."""
        return {"confidence": self.confidence, "label": self.label, "seen": self.seen}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over the state of a checkpoint."""
        for name, values in state.items():
            getattr(self, name).copy_(values)


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
    finite: Tensor | None = None
    hidden = title is None
    with evaluating(network), console.progress(title or "", len(positions), "images", hidden=hidden) as bar:
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
    predicted = student_logits.argmax(dim=1)
    commonest = predicted.mode().values
    return {
        "commonest": round(float((predicted == commonest).double().mean()), 4),
        "teachers_share_of_it": round(float((teacher_logits.argmax(dim=1) == commonest).double().mean()), 4),
    }


class CachedLogits(Protocol):
    """The teacher's logits: an array for the whole pool, or a function that gives them for positions."""

    def __getitem__(self, positions: np.ndarray, /) -> np.ndarray:
        """Shapes: (n,) positions in the pool -> (n, K)."""


class PoolScan:
    """A `kd3.methods.Scan`: predictions are computed on request and held in a few bytes per image.

    `teacher_logits` returns those of the pool, by position in it; `positions` are the training images in it;
    `foldable` are batch norms of the student that a scan may merge away; without a student only the teacher is
    available. `title` names the progress of the student's scans; None hides it. `typicality` returns the training
    images' distances to the lost data, and `outliers` which of them are unlike all of it.
    """

    def __init__(
        self,
        student: Student | None,
        batches: PoolBatches,
        positions: np.ndarray,
        teacher_logits: Callable[[], CachedLogits],
        compute: Compute,
        latest: LatestPredictions,
        foldable: list[Pair] | None = None,
        title: str | None = None,
        typicality: Callable[[], Tensor] | None = None,
        outliers: Callable[[], Tensor] | None = None,
    ) -> None:
        self.student, self.batches, self.positions = student, batches, positions
        self._teacher_logits, self.compute, self.latest = teacher_logits, compute, latest
        self.foldable, self.title = foldable or [], title
        self._typicality, self._outliers = typicality, outliers

    @property
    def count(self) -> int:
        """Number of training images N."""
        return len(self.positions)

    def teacher_logits(self) -> Iterator[Tensor]:
        """Yield (n, K), on the CPU."""
        return self._teachers(self.positions)

    def typicality(self) -> Tensor:
        """Return the distance of each image to the lost data, (N,) float32, on the CPU."""
        assert self._typicality is not None
        return self._typicality()

    def outliers(self) -> Tensor:
        """Return which images are unlike all of the lost data, (N,) bool, on the CPU."""
        assert self._outliers is not None
        return self._outliers()

    def predictions(self, teacher_weight: float) -> Predictions:
        """Return the predictions of the blend of both networks' logits for each image now."""
        index = torch.arange(self.count)
        self._renew(index, teacher_weight)
        return self.latest.predictions()

    def latest_predictions(self, teacher_weight: float, *, refreshed: float) -> Predictions:
        """Return the latest prediction for each image; renew the oldest ones of unseen images."""
        if self.latest.is_empty:
            return self.predictions(teacher_weight)
        self._renew(self.latest.oldest(refreshed), teacher_weight)
        return self.latest.predictions()

    def _renew(self, index: Tensor, teacher_weight: float) -> None:
        """Predict the images at these training positions, in order."""
        positions = self.positions[index.numpy()]
        # A network of weight 0 in the blend is not run.
        asked = self._students(positions) if teacher_weight < 1 else self._teachers(positions)
        start = 0
        for logits in asked:
            places = slice(start, start + len(logits))
            if 0 < teacher_weight < 1:
                teacher = torch.from_numpy(self._teacher_logits()[positions[places]])
                logits = blend_logits(sent(teacher, logits.device), logits, teacher_weight)
            self.latest.note(index[places], predict(logits))
            start += len(logits)

    def _students(self, positions: np.ndarray) -> Iterator[Tensor]:
        assert self.student is not None
        network, normalise = fold(self.student, self.foldable), self.student.normalise
        return scored(network, self.batches, positions, normalise, self.compute, title=self.title)

    def _teachers(self, positions: np.ndarray, size: int = 4096) -> Iterator[Tensor]:
        kept = self._teacher_logits()
        for start in range(0, len(positions), size):
            yield torch.from_numpy(kept[positions[start : start + size]])
