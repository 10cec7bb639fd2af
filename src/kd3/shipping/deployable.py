"""The student as it is exported: batch norms folded, preprocessing inside or not."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from kd3.models.fold import fold, foldable
from kd3.models.student import Student

Preprocessing = Literal["inside", "outside"]


class Deployable(nn.Module):
    """Images to logits, ready to be traced; float32, on the CPU, in evaluation mode.

    With the preprocessing inside it takes decoded images, uint8 RGB (B, 3, S, S); otherwise floats normalised with the
    student's mean and std. Returns logits (B, K).
    """

    def __init__(self, student: Student, *, preprocessing: Preprocessing) -> None:
        super().__init__()
        student = student.cpu().float().eval()
        self.student = fold(student, foldable(student, student.input_size))
        self.normalise = student.normalise if preprocessing == "inside" else None

    def forward(self, images: Tensor) -> Tensor:
        """Shapes: (B, 3, S, S) -> (B, K)."""
        logits: Tensor = self.student(images if self.normalise is None else self.normalise(images))
        return logits

    def example(self, images: Tensor) -> Tensor:
        """Convert uint8 images to this module's input."""
        if self.normalise is not None:
            return images
        prepared: Tensor = self.student.normalise(images)  # type: ignore[operator]  # a Student, folded
        return prepared


def dynamic_batch() -> dict[str, dict[int, torch.export.Dim]]:
    """Return an exporter's specification of a dynamic batch size."""
    return {"images": {0: torch.export.Dim("batch", min=1)}}
