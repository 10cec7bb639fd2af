"""DFND: distil on the images with the surest teacher predictions, with a model of the teacher's mistakes.

Source: Chen et al., Learning Student Networks in the Wild (CVPR 2021), and its public code for the constants. It
selects the n images with the smallest cross-entropy between the teacher's logits and their own argmax, and distils on
them with a temperature. It adds the cross-entropy to that argmax of the student's probabilities times a transition
matrix Q. The diagonal of Q is the teacher's accuracy; the rest is learned by an Adam of its own at a constant 1e-3.
Differs: an unknown teacher accuracy is estimated without labels, by the mean confidence on the selected images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kd3.config.methods import DFNDOptions
from kd3.losses.noisy_labels import adapted_cross_entropy, transition_matrix
from kd3.losses.soft_targets import soft_target_divergence
from kd3.methods.base import Method, Scan, StepResult
from kd3.models.head import ModelOutput
from kd3.models.student import Student, own_head
from kd3.models.teacher import Teacher
from kd3.selection.select import Selection
from kd3.selection.surest import select_surest

HIGHEST_ACCURACY = 0.999  # an estimate of 1 leaves the matrix nothing to learn


class DFND(Method):
    """L = T^2 KL(softmax(z_T / T) || softmax(z_S / T)) + w CE(softmax(z_S) Q, argmax z_T)."""

    assumed_accuracy: Tensor  # (), float64, the diagonal of Q

    def __init__(self, options: DFNDOptions, teacher: Teacher, student: Student) -> None:
        super().__init__(teacher, student)
        self.options = options
        self.mistakes = nn.Parameter(torch.zeros(teacher.num_classes, teacher.num_classes))
        known = options.teacher_accuracy
        self.register_buffer("assumed_accuracy", torch.tensor(known or 1 / teacher.num_classes, dtype=torch.float64))
        self._selected: Selection | None = None

    @classmethod
    def build(
        cls, options: DFNDOptions, *, teacher: Teacher, backbone: nn.Module, backbone_name: str, sample: Tensor
    ) -> DFND:
        """Return the method for a teacher and a student's backbone."""
        return cls(options, teacher, own_head(backbone, teacher.signature(), name=backbone_name))

    def moved_by_adam(self) -> list[Tensor]:
        """Return Q: an optimizer for hidden matrices would reduce each row to one or two classes within a few steps."""
        return [self.mistakes]

    def select(self, scan: Scan, progress: float, *, at_least: int) -> Selection:
        """Return the images with the smallest teacher cross-entropy, the same each time."""
        if self._selected is None:
            wanted = max(at_least, round(self.options.share * scan.count))
            self._selected, confidence = select_surest(scan.teacher_logits(), wanted)
            if self.options.teacher_accuracy is None:
                self.assumed_accuracy.fill_(min(confidence, HIGHEST_ACCURACY))
        return self._selected

    def forward(
        self,
        images: Tensor,
        generator: torch.Generator,
        teacher: ModelOutput | None = None,
        labels: Tensor | None = None,
    ) -> StepResult:
        """Return the loss of a batch."""
        options = self.options
        target = self.teacher(images) if teacher is None else teacher.logits
        logits = self.student(images)
        terms = {"soft_targets": soft_target_divergence(logits, target, temperature=options.temperature)}
        if options.noise_weight > 0:
            transition = transition_matrix(self.mistakes, self.assumed_accuracy)
            adapted = adapted_cross_entropy(logits, target.argmax(dim=1), transition)
            terms["noisy_labels"] = options.noise_weight * adapted
        return StepResult(torch.stack(list(terms.values())).sum(), terms)
