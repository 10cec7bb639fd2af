"""Temperature distillation on every image of the pool, or on a random part of it: the plain baseline.

Source: Hinton et al., Distilling the Knowledge in a Neural Network (arXiv 1503.02531), section 2. The random part is
the "random" row in the tables of KD3 (arXiv 2307.11469).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kd3.config.methods import KDOptions
from kd3.losses.soft_targets import soft_target_divergence
from kd3.methods.base import Method, Scan, StepResult
from kd3.models.head import ModelOutput
from kd3.models.student import Student, own_head
from kd3.models.teacher import Teacher
from kd3.selection.select import Selection, select_everything, select_random


class KD(Method):
    """L = T^2 * KL(softmax(z_T / T) || softmax(z_S / T)), the student's own classifier, no labels."""

    def __init__(self, options: KDOptions, teacher: Teacher, student: Student) -> None:
        super().__init__(teacher, student)
        self.options = options
        # Drawn with the initial weights, so the run's seed decides it; a resumed run draws it again.
        self._seed = int(torch.randint(2**31, ())) if options.share < 1 else 0

    @classmethod
    def build(
        cls, options: KDOptions, *, teacher: Teacher, backbone: nn.Module, backbone_name: str, sample: Tensor
    ) -> KD:
        """Return the method for a teacher and a student's backbone."""
        return cls(options, teacher, own_head(backbone, teacher.signature(), name=backbone_name))

    def select(self, scan: Scan, progress: float, *, at_least: int) -> Selection:
        """Return all images, or the same random part each time."""
        if self.options.share == 1:
            return select_everything(scan.count)
        wanted = max(at_least, round(self.options.share * scan.count))
        return select_random(scan.count, wanted, seed=self._seed)

    def forward(
        self,
        images: Tensor,
        generator: torch.Generator,
        teacher: ModelOutput | None = None,
        labels: Tensor | None = None,
    ) -> StepResult:
        """Return the loss of a batch."""
        target = self.teacher(images) if teacher is None else teacher.logits
        loss = soft_target_divergence(self.student(images), target, temperature=self.options.temperature)
        return StepResult(loss, {"soft_targets": loss})
