"""A student's batch norms counted again on images like the lost ones, and the share that it takes of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kd3.config.commands import RECALLED_IMAGES
from kd3.inheritance.recalled import ChosenImages, Pairs, Recalled, in_batches, recall_images
from kd3.models.batch_norms import blended, counted, mean_distance, remembered, remembering_norms, set_statistics
from kd3.models.student import Student
from kd3.models.teacher import Teacher
from kd3.runtime import console
from kd3.runtime.compute import Compute
from kd3.runtime.errors import KD3Error
from kd3.runtime.run_summary import adaptation_in_words, distances_in_words

SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Judged:
    """Evaluation of each share on images not used for its statistics."""

    shares: Sequence[float]  # ascending from 0
    same: Tensor  # (shares, N) bool: equal predictions of student and teacher
    distance: Tensor  # (shares, N) KL(teacher || student) of their probabilities, at least 0

    @property
    def divergence(self) -> list[float]:
        """Mean distance of each share."""
        return [float(row) for row in self.distance.mean(1)]

    @property
    def least(self) -> float:
        """The mean distance of the best share."""
        return self.divergence[self.shares.index(self.choose())]

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
        return self.shares[int(self.distance.mean(1).nan_to_num(nan=torch.inf).argmin())]


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


@dataclass(frozen=True)
class Adaptation:
    """Change of a student's batch-norm statistics, and its effect on the available images."""

    kind: str  # "recalled" (from the pool), "given" or "recalled from given"
    images: int
    where: str  # their pool or source
    share: float  # w: new = (1 - w) * as trained + w * counted; 0: as trained
    agreement_before: float  # percent of images with equal predictions of student and teacher
    agreement_after: float  # the same; each image is evaluated with statistics of other images
    agreement_by_share: dict[str, float]
    divergence_by_share: dict[str, float]  # mean KL(teacher || student) on the same images; the least one decides
    distance_before: float  # of the student's statistics from those of the images; see `mean_distance`
    distance_after: float
    gap_before: float | None  # of recalled images: the objective of their original images
    gap_after: float | None
    kept_out: int  # images excluded by --keep-out
    positions: list[int] | None = None  # in the pool
    keys: list[str] = field(default_factory=list)
    accuracy_before: float | None = None  # percent of --eval-data, of the student as trained; not used for the choice
    accuracy_after: float | None = None

    @property
    def changed(self) -> bool:
        """Whether the student has changed."""
        return self.share > 0

    def __str__(self) -> str:
        return f"{adaptation_in_words(self.record())}\n{distances_in_words(self.record())}"

    def record(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return asdict(self)


def obstacle(student: Student, teacher: Teacher | None) -> str | None:
    """Return in words the obstacle to adapting a student; None if there is none. Without a teacher: to given images."""
    if not remembering_norms(student):
        return "the student keeps no batch-norm statistics, so there is nothing to adapt"
    if teacher is not None and not remembering_norms(teacher.module):
        return f"teacher {teacher.name} keeps no batch-norm statistics, so it has nothing to recall images from"
    return None


def adapt_by_recall(
    student: Student, teacher: Teacher, chosen: ChosenImages, compute: Compute
) -> tuple[Adaptation, Pairs]:
    """Recall images from the teacher, estimate the student's statistics on them and blend; changes the student.

    Args:
        student: in evaluation mode; only its running statistics change.
        teacher: the user's own, with its own statistics and its batch norms not folded.
        chosen: crawl images to begin with.

    Raises:
        KD3Error: as `recall_images`; the student is then unchanged.
    """
    recalled = recall_images(teacher, chosen.images, compute)
    pairs = Pairs.of(chosen.images, recalled.images, teacher.normalise)
    return _adapt(student, teacher, chosen, recalled.images, compute, kind="recalled", recalled=recalled), pairs


def adapt_to_given(
    student: Student, teacher: Teacher, chosen: ChosenImages, compute: Compute
) -> tuple[Adaptation, Pairs | None]:
    """Estimate the student's statistics for deployment images, and blend; changes the student.

    They are estimated on the images themselves, and on images recalled from each half of them (64 at most), which have
    the statistics of all the lost data instead of a hundred images'. The kind with outputs closest to the teacher's on
    the given images is taken. No label is read. If the teacher has no running statistics, only the images themselves
    are used. Arguments as for `adapt_by_recall`, of any teacher.
    """
    compute.place(teacher)
    images = torch.cat([teacher.normalise(part.to(compute.device)) for part in in_batches(chosen.images)])
    recalled = _recalled_halves(teacher, chosen.images, compute)
    if not recalled:
        return _adapt(student, teacher, chosen, images, compute), None
    moved = [half.images.to(compute.device) for half in recalled]
    compute.place(student).eval()
    logits = logits_of(teacher, images)
    as_given = judge(student, images, logits)
    as_recalled = judge(student, images, logits, counted_on=moved)
    if as_given.least <= as_recalled.least:
        return _adapt(student, teacher, chosen, images, compute, judged=as_given), None
    whole = Recalled.of(recalled)
    begun = torch.cat(
        [chosen.images[half][: len(one.images)] for half, one in zip(halves(len(images)), recalled, strict=True)]
    )
    adaptation = _adapt(
        student,
        teacher,
        chosen,
        torch.cat(moved),
        compute,
        kind="recalled from given",
        recalled=whole,
        judged=as_recalled,
    )
    return adaptation, Pairs.of(begun, whole.images, teacher.normalise)


def _recalled_halves(teacher: Teacher, images: Tensor, compute: Compute) -> list[Recalled]:
    """Return images recalled from each half of the given ones; none if the teacher has no running statistics."""
    if not remembering_norms(teacher.module):
        return []
    try:
        return [recall_images(teacher, images[half][:RECALLED_IMAGES], compute) for half in halves(len(images))]
    except KD3Error as problem:
        console.info(f"only the given images are counted: {problem}")
        return []


def _adapt(
    student: Student,
    teacher: Teacher,
    chosen: ChosenImages,
    images: Tensor,
    compute: Compute,
    *,
    kind: str = "given",
    recalled: Recalled | None = None,
    judged: Judged | None = None,
) -> Adaptation:
    compute.place(student).eval()
    compute.place(teacher)
    images = images.to(compute.device)
    judged = judged or judge(student, images, logits_of(teacher, images))
    share = judged.choose()
    old, new = remembered(student), counted(student, in_batches(images))
    taken = blended(old, new, share)
    set_statistics(student, taken)
    agreement = dict(zip(judged.shares, judged.agreement, strict=True))
    return Adaptation(
        kind=kind,
        images=len(images),
        where=chosen.where,
        share=share,
        agreement_before=agreement[0.0],
        agreement_after=agreement[share],
        agreement_by_share={f"{one:g}": round(value, 2) for one, value in agreement.items()},
        divergence_by_share={
            f"{one:g}": round(value, 4) for one, value in zip(judged.shares, judged.divergence, strict=True)
        },
        distance_before=mean_distance(old, new),
        distance_after=mean_distance(taken, new),
        gap_before=None if recalled is None else recalled.before,
        gap_after=None if recalled is None else recalled.after,
        kept_out=chosen.kept_out,
        positions=chosen.positions,
        keys=chosen.keys,
    )
