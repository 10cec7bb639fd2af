"""Predictions of a teacher over many images: its confidence, and the predicted classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from kd3.selection.predictions import Predictions, predict
from kd3.selection.select import select_confident

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
        said = predict(logits.float())
        self._parts.append((said.confidence.cpu(), said.label.cpu(), entropy.cpu()))

    def predictions(self) -> Predictions:
        """Return class and confidence of every image so far, in order."""
        confidence, label, _ = (torch.cat(column) for column in zip(*self._parts, strict=True))
        return Predictions(confidence, label, len(self.classes))

    def opinions(self) -> Opinions:
        """Return the summary."""
        said = self.predictions()
        entropy = torch.cat([part[2] for part in self._parts]).double()
        predicted = torch.bincount(said.label, minlength=said.num_classes)
        sure = said.confidence > CONFIDENT
        shares = predicted.double() / said.images
        spread = -(shares * shares.clamp_min(1e-300).log()).sum()
        # torch.quantile refuses more than 16 million values.
        ordered = said.confidence.sort().values
        places = {str(q): float(ordered[round(q * (said.images - 1))]) for q in QUANTILES}
        return Opinions(
            images=said.images,
            classes=self.classes,
            mean_confidence=float(said.confidence.double().mean()),
            confidence_quantiles=places,
            mean_entropy=float(entropy.mean()),
            entropy_share=float(entropy.mean()) / math.log(said.num_classes) if said.num_classes > 1 else 0.0,
            predicted=predicted.tolist(),
            confident=torch.bincount(said.label[sure], minlength=said.num_classes).tolist(),
            confident_share=float(sure.double().mean()),
            effective_classes=math.exp(float(spread)),
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
