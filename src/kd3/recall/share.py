"""Share of the counted statistics that a student takes: chosen by its agreement with the teacher, without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kd3.models.batch_norm_statistics import blended, counted, remembered, set_statistics
from kd3.recall.recalled import in_batches

SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Judged:
    """Evaluation of each share on images not used for its statistics."""

    shares: Sequence[float]  # ascending from 0
    same: Tensor  # (shares, N) bool: equal predictions of student and teacher
    distance: Tensor  # (shares, N) KL(teacher || student) of their probabilities, at least 0

    @property
    def least(self) -> float:
        """The mean distance of the best share."""
        return float(self.distance.mean(1).min())

    @property
    def agreement(self) -> list[float]:
        """Agreement of each share, in percent."""
        return [100 * float(row) for row in self.same.double().mean(1)]

    def choose(self) -> float:
        """Return the share with the least mean distance; 0, as trained, where no other is closer.

        The curve over shares is flat near its minimum, and every share is judged on the same images, so the least
        mean is trusted as it is. A test for a clear gain kept students as trained that would have won two points
        (docs/results/inherit-fit-recall.md).
        """
        return self.shares[int(self.distance.mean(1).argmin())]


def halves(count: int) -> list[Tensor]:
    """Return the positions of two halves of the images: even and odd ones."""
    return [torch.arange(count)[start::2] for start in range(2)]


def judge(
    student: nn.Module,
    images: Tensor,
    teacher_logits: Tensor,
    *,
    counted_on: Sequence[Tensor] | None = None,
    shares: Sequence[float] = SHARES,
) -> Judged:
    """Cross-validate shares: estimated on one half of the images, evaluated on the other.

    `counted_on` are the images to estimate on for each of the two `halves` (None: the images themselves). The student
    is unchanged. Shapes: images (N, 3, S, S) and those of counted_on, normalised, on the student's
    device; teacher_logits (N, K), on the CPU.
    """
    old = remembered(student)
    both = halves(len(images))
    stand = [images[half] for half in both] if counted_on is None else counted_on
    logits = torch.empty(len(shares), *teacher_logits.shape, dtype=torch.float64)
    try:
        for mine, other in zip(stand, both[::-1], strict=True):
            new = counted(student, in_batches(mine))
            for number, share in enumerate(shares):
                set_statistics(student, blended(old, new, share))
                logits[number, other] = logits_of(student, images[other])
    finally:
        set_statistics(student, old)
    expected = teacher_logits.double().log_softmax(1)
    distance = (expected.exp() * (expected - logits.log_softmax(2))).sum(2)
    return Judged(shares, logits.argmax(2) == teacher_logits.argmax(1), distance)


def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    """Return a network's logits of normalised images: (N, 3, S, S) -> (N, K) float64, on the CPU."""
    with torch.no_grad():
        return torch.cat([network(part).double().cpu() for part in in_batches(images)])
