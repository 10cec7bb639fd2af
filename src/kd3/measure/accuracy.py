"""Accuracy, calibration and agreement from logits, summed batch by batch in constant memory."""

from __future__ import annotations

import torch
from torch import Tensor

from kd3.measure.calibration import Reliability


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
        """Count one batch. Shapes: (B, K), (B,), (B, K); the teacher's logits in the order of the model's."""
        logits, labels = logits.double().cpu(), labels.cpu()
        confidence, prediction = (logits / self.temperature).softmax(dim=1).max(dim=1)
        pairs = torch.bincount(labels * self.num_classes + prediction, minlength=self.num_classes**2)
        self.confusion += pairs.view(self.num_classes, self.num_classes)
        best = logits.topk(min(5, self.num_classes), dim=1).indices
        self.top5 += int((best == labels[:, None]).any(dim=1).sum())
        self.reliability.add(confidence, prediction == labels)
        if teacher_logits is not None:
            theirs = teacher_logits.cpu().argmax(dim=1)
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
