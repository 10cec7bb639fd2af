"""One pass of the teacher over images: distances from its batch norms, predictions, and features of some images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kd3.evaluation.shift_distances import diagonal_wasserstein
from kd3.models.batch_norms import Moments, moments_of, remembering_norms
from kd3.models.head import global_avg_pool, hooked
from kd3.models.teacher import Teacher
from kd3.runtime import console
from kd3.runtime.compute import Compute
from kd3.runtime.errors import KD3Error
from kd3.selection import Predictions, predict, select_confident

LAST_LAYERS = 3  # closest to the classifier


@dataclass(frozen=True)
class LayerShift:
    """Shift in one batch norm."""

    layer: str  # path of the module
    channels: int
    distance: float  # squared 2-Wasserstein, in units of the layer's own variance, mean over channels; 0 is the same
    mean_part: float  # the means' part of it; the rest comes from the deviations


class BatchNormWatch:
    """Collects mean and variance of the inputs of a network's batch norms, in constant memory.

    Only those with running statistics are watched; without any, `layers` is empty. A module that runs several times per
    image counts each time.
    """

    def __init__(self, network: nn.Module) -> None:
        self.norms = remembering_norms(network)
        self.moments: dict[str, Moments] = {}

    def watching(self) -> AbstractContextManager[None]:
        """Collect from every forward pass within the context."""
        return hooked(norm.register_forward_pre_hook(self._hook(name)) for name, norm in self.norms.items())

    def _hook(self, name: str) -> Any:
        def collect(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            with torch.no_grad(), torch.autocast(arguments[0].device.type, enabled=False):
                new = moments_of(arguments[0])
            seen = self.moments.get(name)
            self.moments[name] = new if seen is None else seen.merge(new)

        return collect

    def layers(self) -> list[LayerShift]:
        """Return the distance of each watched layer's input from its running statistics, in the network's order.

        Per channel, with (mu, s) seen and (m, r) remembered: ((mu - m)^2 + (s - r)^2) / (r^2 + eps),
        eps the layer's own; then the mean over channels. So layers of any scale compare.

        Source: batch-norm statistics as a stand-in for the lost data as in DeepInversion (arXiv
        1912.08795), equation 4; the distance is the one between Gaussians.
        """
        found = []
        for name, norm in self.norms.items():
            if name not in self.moments:
                continue  # it did not run
            seen = self.moments[name]
            assert isinstance(norm.running_mean, Tensor)
            assert isinstance(norm.running_var, Tensor)
            mean, variance = norm.running_mean.double(), norm.running_var.double()
            scale = variance + float(norm.eps)  # type: ignore[arg-type]  # a network may have it as an integer
            whole = diagonal_wasserstein(seen.mean, seen.variance, mean, variance, scale=scale)
            from_means = ((seen.mean - mean).square() / scale).mean()
            found.append(LayerShift(name, len(mean), float(whole), float(from_means)))
        return found


@dataclass(frozen=True)
class BatchNormShift:
    """All batch norms of a teacher, and their summary."""

    layers: list[LayerShift]
    mean: float  # over layers
    last: float  # over the last `LAST_LAYERS`
    worst: str  # the layer of the largest distance


def summed_up(layers: list[LayerShift]) -> BatchNormShift | None:
    """Return the layers with their means; None without batch norms."""
    if not layers:
        return None
    distances = [layer.distance for layer in layers]
    last = distances[-LAST_LAYERS:]
    worst = max(layers, key=lambda layer: layer.distance).layer
    return BatchNormShift(layers, sum(distances) / len(distances), sum(last) / len(last), worst)


CONFIDENT = 0.95  # KD3's threshold (arXiv 2307.11469)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Opinions:
    """Summary of a teacher's predictions on N images."""

    images: int
    classes: list[str]
    mean_confidence: float  # of the highest probability, in [0, 1]
    confidence_quantiles: dict[str, float]  # "0.05": confidence
    mean_entropy: float  # nats, in [0, log K]
    entropy_share: float  # of log K, in [0, 1]
    predicted: list[int]  # images a class, in the order of `classes`
    confident: list[int]  # of these, with a confidence above `CONFIDENT`
    confident_share: float  # of all images, in [0, 1]
    effective_classes: float  # exp of the entropy of `predicted`, in [1, K]


@dataclass(frozen=True)
class Kept:
    """Images of a pool that KD3's selection keeps with the teacher only (alpha = 1)."""

    share: float  # of all images, in [0, 1]
    per_class: list[int]
    rescued: list[str]  # classes without an image above the thresholds


class OpinionWatch:
    """Collects predictions, twelve bytes per image."""

    def __init__(self, classes: list[str]) -> None:
        self.classes = classes
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, logits: Tensor) -> None:
        """Add one batch of finite logits, (B, K)."""
        logs = torch.log_softmax(logits.float(), dim=1)
        entropy = -(logs.exp() * logs).sum(dim=1)
        found = predict(logits.float())
        self._parts.append((found.confidence.cpu(), found.label.cpu(), entropy.cpu()))

    def predictions(self) -> Predictions:
        """Return class and confidence of every image so far, in order."""
        confidence, label, _ = (torch.cat(column) for column in zip(*self._parts, strict=True))
        return Predictions(confidence, label, len(self.classes))

    def opinions(self) -> Opinions:
        """Return the summary."""
        found = self.predictions()
        entropy = torch.cat([part[2] for part in self._parts]).double()
        predicted = torch.bincount(found.label, minlength=found.num_classes)
        sure = found.confidence > CONFIDENT
        shares = predicted.double() / found.images
        label_entropy = -(shares * shares.clamp_min(1e-300).log()).sum()
        # torch.quantile refuses more than 16 million values.
        ordered = found.confidence.sort().values
        places = {str(q): float(ordered[round(q * (found.images - 1))]) for q in QUANTILES}
        return Opinions(
            images=found.images,
            classes=self.classes,
            mean_confidence=float(found.confidence.double().mean()),
            confidence_quantiles=places,
            mean_entropy=float(entropy.mean()),
            entropy_share=float(entropy.mean()) / math.log(found.num_classes) if found.num_classes > 1 else 0.0,
            predicted=predicted.tolist(),
            confident=torch.bincount(found.label[sure], minlength=found.num_classes).tolist(),
            confident_share=float(sure.double().mean()),
            effective_classes=math.exp(float(label_entropy)),
        )


def kept_by_selection(
    predictions: Predictions, classes: list[str], teacher_logits: Callable[[], Iterable[Tensor]]
) -> Kept:
    """Return the images that KD3 would keep at the start, when only the teacher decides.

    `teacher_logits` gives the logits of the same images again, (n, K) at a time; called only if the thresholds leave a
    class without an image.
    """
    chosen = select_confident(predictions, threshold=CONFIDENT, teacher_logits=teacher_logits)
    assert chosen.kept_per_class is not None
    return Kept(
        share=len(chosen.index) / predictions.images,
        per_class=chosen.kept_per_class.tolist(),
        rescued=[classes[label] for label in chosen.rescued_classes],
    )


@dataclass(frozen=True)
class TeacherPass:
    """Results of one pass."""

    watch: OpinionWatch
    batch_norms: BatchNormShift | None  # None: no running statistics in the teacher
    features: np.ndarray  # (n, d) float64: pooled features of the chosen images; (0, 0) if none
    predicted: np.ndarray  # (n,) int64: the teacher's predicted class


def run_teacher(
    teacher: Teacher,
    batches: Iterable[tuple[Tensor, np.ndarray]],
    compute: Compute,
    *,
    title: str,
    total: int | None,
) -> TeacherPass:
    """Run the teacher once over batches of images and a mask of those whose features are wanted.

    Batches are uint8 (B, 3, S, S) on the device and bool (B,). Without a shared head the logits
    serve as features. Memory: a few bytes per image, and the requested features.

    Raises:
        KD3Error: some logits are not finite.
    """
    norms, watch = BatchNormWatch(teacher.module), OpinionWatch(teacher.classes)
    features: list[np.ndarray] = []
    predicted: list[np.ndarray] = []
    with console.progress(title, total, "images") as bar, norms.watching():
        for images, chosen in batches:
            with torch.inference_mode(), compute.autocast():
                values, logits = _run(teacher, teacher.normalise(images.contiguous(memory_format=torch.channels_last)))
            if not bool(torch.isfinite(logits).all()):
                raise KD3Error("the teacher's logits are not finite on some images; use --precision 32")
            watch.add(logits)
            if chosen.any():
                index = torch.from_numpy(np.flatnonzero(chosen)).to(values.device)
                features.append(values[index].double().cpu().numpy())
                predicted.append(logits[index].argmax(dim=1).cpu().numpy())
            bar.advance(len(images))
    return TeacherPass(
        watch=watch,
        batch_norms=summed_up(norms.layers()),
        features=np.concatenate(features) if features else np.empty((0, 0)),
        predicted=np.concatenate(predicted) if predicted else np.empty(0, dtype=np.int64),
    )


def _run(teacher: Teacher, images: Tensor) -> tuple[Tensor, Tensor]:
    if teacher.head is None:
        logits = teacher(images).float()
        return logits, logits
    outputs = teacher.outputs(images)
    return global_avg_pool(outputs.features.float()), outputs.logits.float()
