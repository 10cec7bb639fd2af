"""Accuracy, calibration and agreement from logits, in constant memory, with the uncertainty that n images leave."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import minimize_scalar
from scipy.special import betaincinv, ndtri
from torch import Tensor

from kd3.runtime.errors import KD3Error

LEVEL = 0.95  # of every interval
Z = float(ndtri((1 + LEVEL) / 2))


@dataclass(frozen=True)
class Interval:
    """A figure in percent or points, with its interval at 95% confidence."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} ({self.low:.1f} to {self.high:.1f})"

    def signed(self) -> str:
        """Format it with signs, as a difference."""
        return f"{self.value:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


def share(count: int, images: int) -> Interval:
    """Return a share of independent images, in percent, with Wilson's interval. `images` is at least 1.

    Source: Wilson (1927), https://doi.org/10.1080/01621459.1927.10502953.

    >>> print(share(90, 100))
    90.0 (82.6 to 94.5)
    """
    z, p = Z, count / images
    middle = (p + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * (p * (1 - p) / images + z**2 / (4 * images**2)) ** 0.5
    # At either end the interval touches it, up to rounding.
    return Interval(100 * p, 100 * max(0.0, min(middle - half, p)), 100 * min(1.0, max(middle + half, p)))


def paired_difference(gained: int, lost: int, images: int) -> Interval:
    """Return the difference of two classifiers' accuracies on the same images, in points, with its interval.

    Only images that exactly one of them gets right count: b of `gained`, c of `lost`. With half an image added to each
    of the four cells, so that n = images + 2: d = (b - c) / n, and d ± z sqrt(b + c - (b - c)² / n) / n.

    Args:
        gained: images that only the first gets right.
        lost: images that only the second gets right.
        images: all of them, at least 1.

    Source: Agresti and Min (2005), https://doi.org/10.1002/sim.1781.

    >>> print(paired_difference(10, 30, 200).signed())
    -10.0 (-16.0 to -3.8)
    """
    n, b, c = images + 2, gained + 0.5, lost + 0.5
    middle = (b - c) / n
    half = Z * (b + c - (b - c) ** 2 / n) ** 0.5 / n
    low, high = max(-1.0, middle - half), min(1.0, middle + half)
    return Interval(100 * (gained - lost) / images, 100 * low, 100 * high)


def most(count: int, images: int, confidence: float) -> float:
    """Return the one-sided upper bound of a share at a confidence in (0, 1): Clopper and Pearson's, exact.

    For any true share of independent images, the bound lies below it in at most 1 - confidence of the samples.

    Source: Clopper and Pearson (1934), https://doi.org/10.1093/biomet/26.4.404.

    >>> round(most(0, 299, 0.95), 5)
    0.00997
    """
    return 1.0 if count >= images else float(betaincinv(count + 1, images - count, confidence))


def finite(logits: Tensor, *, whose: str) -> Tensor:
    """Return logits (B, K) as they are; their largest one would be the first that is no number.

    Raises:
        KD3Error: some are not finite.
    """
    odd = ~torch.isfinite(logits).all(dim=1)
    if not bool(odd.any()):
        return logits
    raise KD3Error(
        f"{whose} logits are not finite on {int(odd.sum()):,} of {len(logits):,} images, so it has no answer there; "
        f"--precision 32 helps if they overflow"
    )


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
        confidence, predicted = (logits.double() / temperature).softmax(dim=1).max(dim=1)
        found = cls()
        found.add(confidence, predicted == answers)
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


class Tally:
    """Counts the correct answers of a classifier.

    Args:
        num_classes: number of classes K.
        temperature: divisor of the logits before the softmax.
    """

    def __init__(self, num_classes: int, *, temperature: float = 1.0) -> None:
        self.num_classes = num_classes
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)  # [label, prediction]
        self.top5 = 0
        self.agreed: int | None = None
        self.teacher_right: int | None = None
        self.temperature, self.reliability = temperature, Reliability()

    def add(self, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None) -> None:
        """Count one batch. Shapes: (B, K), (B,), (B, K); the teacher's logits in the order of the model's.

        Raises:
            KD3Error: some logits are not finite.
        """
        logits, labels = finite(logits, whose="the model's").double().cpu(), labels.cpu()
        confidence, prediction = (logits / self.temperature).softmax(dim=1).max(dim=1)
        pairs = torch.bincount(labels * self.num_classes + prediction, minlength=self.num_classes**2)
        self.confusion += pairs.view(self.num_classes, self.num_classes)
        best = logits.topk(min(5, self.num_classes), dim=1).indices
        self.top5 += int((best == labels[:, None]).any(dim=1).sum())
        self.reliability.add(confidence, prediction == labels)
        if teacher_logits is not None:
            theirs = finite(teacher_logits, whose="the teacher's").cpu().argmax(dim=1)
            self.agreed = (self.agreed or 0) + int((prediction == theirs).sum())
            self.teacher_right = (self.teacher_right or 0) + int((theirs == labels).sum())

    @property
    def count(self) -> int:
        """Images counted."""
        return int(self.confusion.sum())

    @property
    def top1_percent(self) -> float:
        """Share of images whose first class is correct."""
        return 100 * int(self.confusion.diag().sum()) / self.count

    @property
    def top5_percent(self) -> float:
        """Share of images whose label is among the five first classes (or all, where there are fewer)."""
        return 100 * self.top5 / self.count

    @property
    def agreement_percent(self) -> float | None:
        """Share of images for which teacher and student predict the same class; None without a teacher."""
        return None if self.agreed is None else 100 * self.agreed / self.count

    @property
    def teacher_top1_percent(self) -> float | None:
        """Share of images for which the teacher's first class is correct; None without a teacher."""
        return None if self.teacher_right is None else 100 * self.teacher_right / self.count

    @property
    def calibration_error_percent(self) -> float:
        """Expected calibration error in 15 bins; see `Reliability`."""
        return self.reliability.error_percent

    def per_class_percent(self) -> list[float | None]:
        """Accuracy of each class's images; None for a class without any."""
        counts = self.confusion.sum(dim=1).tolist()
        right = self.confusion.diag().tolist()
        return [100 * r / n if n else None for r, n in zip(right, counts, strict=True)]
