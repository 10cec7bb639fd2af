"""Blend of teacher and student logits, with a growing share of the student."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

Schedule = Literal["paper", "smooth", "constant", "teacher"]


def blend_logits(teacher_logits: Tensor, student_logits: Tensor, teacher_weight: float | Tensor) -> Tensor:
    """Return alpha * z_T + (1 - alpha) * z_S: logits are mixed, not probabilities.

    Shapes: (N, K), (N, K) -> (N, K). teacher_weight (alpha) in [0, 1], a number or ().

    Source: KD3 (arXiv 2307.11469), dynamic instance selection.
    """
    return teacher_weight * teacher_logits + (1 - teacher_weight) * student_logits


def teacher_weight(progress: float, schedule: Schedule = "smooth", *, constant: float = 0.5) -> float:
    """Return the teacher's share alpha in the blend, at a point of the training.

    With t = progress in [0, 1] and ramp(x) = 1 - exp(-5 * (x - 1)^2):

    - "paper": ramp((240 t + 2) / 160) for t < 119/240, then 0. This is the authors' code, which before epoch e of 240,
    counted from 1, takes ramp((e + 1) / 160) for e < 120: 0.99 at first, 0.27 in epoch 119, then a jump to 0.
    - "smooth": ramp(3t/2) until it reaches 0 at t = 2/3, then 0: nearly the same curve without the jump.
    - "constant": `constant` throughout; "teacher": 1 throughout (the student is never used).

    Source: KD3 (arXiv 2307.11469), dynamic instance selection, and the authors' code for the constants.

    >>> round(teacher_weight(0.0, "paper"), 2), round(teacher_weight(80 / 240, "paper"), 2)
    (0.99, 0.7)
    """
    if schedule == "constant":
        return constant
    if schedule == "teacher":
        return 1.0
    if schedule == "paper":
        place, end = 1.5 * progress + 2 / 160, 119 / 240
    else:
        place, end = 1.5 * progress, 2 / 3
    return 1 - math.exp(-5 * (place - 1) ** 2) if progress < end else 0.0
