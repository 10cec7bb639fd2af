"""SimKD: the student learns the teacher's features and uses the teacher's classifier.

Source: Chen et al., Knowledge Distillation with the Reused Teacher Classifier (arXiv 2203.14001), equation 2: the mean
square between projected and teacher features, no other term. By default (ours) the mean square is a share of the
teacher's feature energy; the raw one learns too slowly for short budgets: `alignment_scale: raw` with weight 1 is the
paper's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kd3.config.methods import SimKDOptions
from kd3.losses.feature_alignment import feature_alignment
from kd3.methods.base import Method, Scan, StepResult
from kd3.methods.shared_classifier import student_with_teachers_classifier
from kd3.models.head import ModelOutput
from kd3.models.student import Student
from kd3.models.teacher import Teacher
from kd3.selection.select import Selection, select_everything


class SimKD(Method):
    """L = mean over B, C, h, w of (r(F_S(x)) - F_T(x))^2, on all images."""

    def __init__(self, options: SimKDOptions, teacher: Teacher, student: Student) -> None:
        super().__init__(teacher, student)
        self.options = options

    @classmethod
    def build(
        cls, options: SimKDOptions, *, teacher: Teacher, backbone: nn.Module, backbone_name: str, sample: Tensor
    ) -> SimKD:
        """Return the method for a teacher and a student's backbone."""
        student = student_with_teachers_classifier(
            teacher,
            backbone,
            backbone_name,
            sample,
            projector=options.projector,
            projector_width=options.projector_width,
        )
        return cls(options, teacher, student)

    def compares_images(self) -> str | None:
        """Return in words the loss terms that compare images; None: there are none."""
        if self.options.alignment_scale == "relative":
            return "the features' mean energy divides the alignment; use --simkd.alignment-scale raw"
        return None

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
        target = self.teacher.outputs(images) if teacher is None else teacher
        _, student = self.student.outputs(images)
        relative = self.options.alignment_scale == "relative"
        alignment = feature_alignment(student.features, target.features, relative=relative, ranks=self.ranks)
        loss = self.options.alignment_weight * alignment
        return StepResult(loss, {"alignment": loss})
