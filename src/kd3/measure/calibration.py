"""Calibration of a classifier: bins, calibration error, and a temperature that corrects it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

BINS = 15
LEAST, MOST = 0.05, 20.0  # temperatures that are tried


@dataclass(frozen=True)
class Bin:
    """Images of similar confidence: their mean confidence and accuracy, in [0, 1]."""

    images: int
    confidence: float
    right: float


class Reliability:
    """Sums confidences and successes up in 15 equal bins of the confidence, batch by batch."""

    def __init__(self) -> None:
        self.count, self.confidence, self.right = (torch.zeros(BINS, dtype=torch.float64) for _ in range(3))

    def add(self, confidence: Tensor, right: Tensor) -> None:
        """Count images. Shapes: (B,) in [0, 1], (B,) bool."""
        # Bins are (0, 1/n], (1/n, 2/n], ...
        place = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
        self.count.index_add_(0, place, torch.ones_like(confidence))
        self.confidence.index_add_(0, place, confidence)
        self.right.index_add_(0, place, right.double())

    @classmethod
    def of(cls, logits: Tensor, answers: Tensor, temperature: float = 1.0) -> Reliability:
        """Return the bins of logits (N, K) compared with answers (N,)."""
        confidence, said = (logits.double() / temperature).softmax(dim=1).max(dim=1)
        found = cls()
        found.add(confidence, said == answers)
        return found

    @property
    def error_percent(self) -> float:
        """Expected calibration error: sum over bins of share * |accuracy - confidence|.

        Source: Guo et al., On Calibration of Modern Neural Networks (arXiv 1706.04599), equation 3.
        """
        return 100 * float((self.right - self.confidence).abs().sum()) / int(self.count.sum())

    def bins(self) -> list[Bin]:
        """Return the non-empty bins, in order of confidence."""
        rows = zip(self.count.tolist(), self.confidence.tolist(), self.right.tolist(), strict=True)
        return [Bin(int(images), sure / images, hits / images) for images, sure, hits in rows if images]


def fit_temperature(logits: Tensor, answers: Tensor) -> float:
    """Return the temperature T > 0 for which softmax(logits / T) fits the answers best.

    It minimises the mean cross-entropy. To keep T above 0 if all answers are met, an answer has the weight (n + 1) / (n
    + 2) for n images, and all classes share the rest equally, as in Platt scaling.

    Shapes: logits (N, K), answers (N,) int64, of a teacher or of labels.

    Source: Guo et al. (arXiv 1706.04599), section 4.2.
    """
    logits, rest = logits.double(), 1 / (len(logits) + 2)

    def loss(log_temperature: float) -> float:
        log_probabilities = (logits / 2.0**log_temperature).log_softmax(dim=1)
        met = log_probabilities.gather(1, answers[:, None]).mean()
        return -float((1 - rest) * met + rest * log_probabilities.mean())

    bounds = (torch.tensor([LEAST, MOST]).log2()).tolist()
    return float(2.0 ** minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4}).x)
