"""Learn from labels that are sometimes wrong, with a model of their errors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kd3.losses.precision import widen


def transition_matrix(mistakes: Tensor, accuracy: Tensor | float) -> Tensor:
    """Return Q, where Q_ij is the probability that an image of class i was labelled j.

    The diagonal is `accuracy`; the rest of each row shares 1 - accuracy by a softmax of `mistakes`, whose own diagonal
    is ignored. Zeros spread it evenly. Rows sum to 1.

    Shapes: mistakes (K, K), K >= 2; accuracy in [0, 1], a number or () -> (K, K).

    Source: Chen et al., Learning Student Networks in the Wild (DFND, CVPR 2021), noise adaptation matrix; the fixed
    diagonal and the even start are those of its public code.
    """
    own = torch.eye(len(mistakes), dtype=torch.bool, device=mistakes.device)
    others = torch.softmax(widen(mistakes).masked_fill(own, float("-inf")), dim=1)
    return torch.where(own, torch.as_tensor(accuracy, dtype=others.dtype), (1 - accuracy) * others)


def adapted_cross_entropy(student_logits: Tensor, labels: Tensor, transition: Tensor) -> Tensor:
    """Return the mean of -log (softmax(z_S) Q)_y over a batch.

    Shapes: (B, K), (B,) int64, (K, K) -> (). At least 0.

    Source: Chen et al., Learning Student Networks in the Wild (DFND, CVPR 2021).
    """
    adapted = torch.softmax(widen(student_logits), dim=1) @ transition
    return F.nll_loss(adapted.clamp_min(1e-12).log(), labels)
