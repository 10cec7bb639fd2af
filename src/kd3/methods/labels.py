"""Training on original labels, if they exist: the upper bound for distillation on other data.

This is no distillation: the teacher provides only the normalisation and the class names.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd3.config.methods import LabelsOptions
from kd3.methods.base import Method, Scan, StepResult
from kd3.models.head import ModelOutput
from kd3.models.student import own_head
from kd3.models.teacher import Teacher
from kd3.selection.select import Selection, select_everything


class Labels(Method):
    """L = CE(z_S, y), y the image's folder."""

    needs_labels = True

    @classmethod
    def build(
        cls, options: LabelsOptions, *, teacher: Teacher, backbone: nn.Module, backbone_name: str, sample: Tensor
    ) -> Labels:
        """Return the method for a teacher and a student's backbone."""
        return cls(teacher, own_head(backbone, teacher.signature(), name=backbone_name))

    def select(self, scan: Scan, progress: float, *, at_least: int) -> Selection:
        """Return all images."""
        return select_everything(scan.count)

    def forward(
        self,
        images: Tensor,
        generator: torch.Generator,
        teacher: ModelOutput | None = None,
        labels: Tensor | None = None,
    ) -> StepResult:
        """Return the loss of a batch."""
        assert labels is not None
        loss = F.cross_entropy(self.student(images).float(), labels)
        return StepResult(loss, {"labels": loss})
