"""Accuracy, calibration and agreement from logits, summed batch by batch in constant memory."""

from __future__ import annotations

import torch
from torch import Tensor

CALIBRATION_BINS = 15


class Tally:
    """Adds up what a classifier gets right.

    Args:
        num_classes: number of classes K.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)  # [label, prediction]
        self.top5 = 0
        self.agreed: int | None = None
        self.teacher_right: int | None = None
        self.bin_count = torch.zeros(CALIBRATION_BINS, dtype=torch.float64)
        self.bin_confidence = torch.zeros(CALIBRATION_BINS, dtype=torch.float64)
        self.bin_correct = torch.zeros(CALIBRATION_BINS, dtype=torch.float64)

    def add(self, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None) -> None:
        """Count one batch. Shapes: (B, K), (B,), (B, K); the teacher's logits in the order of the model's."""
        logits, labels = logits.double().cpu(), labels.cpu()
        confidence, prediction = logits.softmax(dim=1).max(dim=1)
        pairs = torch.bincount(labels * self.num_classes + prediction, minlength=self.num_classes**2)
        self.confusion += pairs.view(self.num_classes, self.num_classes)
        best = logits.topk(min(5, self.num_classes), dim=1).indices
        self.top5 += int((best == labels[:, None]).any(dim=1).sum())
        # Bins are (0, 1/n], (1/n, 2/n], ...
        place = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1
        self.bin_count.index_add_(0, place, torch.ones_like(confidence))
        self.bin_confidence.index_add_(0, place, confidence)
        self.bin_correct.index_add_(0, place, (prediction == labels).double())
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
        """Share of images whose first class is right."""
        return 100 * int(self.confusion.diag().sum()) / self.count

    @property
    def top5_percent(self) -> float:
        """Share of images whose label is among the five first classes (or all, where there are fewer)."""
        return 100 * self.top5 / self.count

    @property
    def agreement_percent(self) -> float | None:
        """Share of images on which teacher and student say the same class; None without a teacher."""
        return None if self.agreed is None else 100 * self.agreed / self.count

    @property
    def teacher_top1_percent(self) -> float | None:
        """Share of images whose first class is right by the teacher; None without a teacher."""
        return None if self.teacher_right is None else 100 * self.teacher_right / self.count

    @property
    def calibration_error_percent(self) -> float:
        """Expected calibration error: sum over bins of share * |accuracy - confidence|.

        15 equal bins of the confidence. Source: Guo et al., On Calibration of Modern Neural
        Networks (arXiv 1706.04599), equation 3.
        """
        gap = (self.bin_correct - self.bin_confidence).abs().sum()
        return 100 * float(gap) / self.count

    def per_class_percent(self) -> list[float | None]:
        """Accuracy of each class's images; None for a class without any."""
        counts = self.confusion.sum(dim=1).tolist()
        right = self.confusion.diag().tolist()
        return [100 * r / n if n else None for r, n in zip(right, counts, strict=True)]
