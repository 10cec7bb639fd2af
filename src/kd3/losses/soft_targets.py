"""Match the student's softened class probabilities to the teacher's."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from kd3.losses.precision import widen


def soft_target_divergence(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Return T^2 * KL(softmax(z_T / T) || softmax(z_S / T)), the mean over the batch.

    The factor T^2 keeps the gradient's size independent of the temperature T > 0. No gradient
    reaches the teacher's logits. At least 0; 0 where the softened probabilities are equal.

    Shapes: (B, K), (B, K) -> ().

    Source: Hinton et al., Distilling the Knowledge in a Neural Network (arXiv 1503.02531), section 2.
    """
    student_log = F.log_softmax(widen(student_logits) / temperature, dim=1)
    teacher_log = F.log_softmax(widen(teacher_logits).detach() / temperature, dim=1)
    return F.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True) * temperature**2
