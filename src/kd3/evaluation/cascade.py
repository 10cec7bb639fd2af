"""Threshold below which a cascade asks the teacher, its promise, and the record of both.

Threshold below which a cascade asks the teacher, and its guarantee. The student answers where its margin, the largest
logit less the second, reaches the threshold; otherwise the teacher answers, which agrees with itself. So the cascade
disagrees with the teacher exactly on images that the student keeps and gets wrong, and their share can only fall as
the threshold rises.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd3.config.records import places
from kd3.evaluation.accuracy import Reliability, finite, fit_temperature, most
from kd3.models.student import Student
from kd3.models.teacher import Teacher
from kd3.runtime import console
from kd3.runtime.compute import Compute
from kd3.runtime.errors import KD3Error

AGREEMENTS = (95.0, 98.0, 99.0)  # percent, always evaluated
CONFIDENCE = 95.0  # percent, of a guarantee
POINTS = 101  # of a curve


@dataclass(frozen=True)
class Threshold:
    """A threshold's guarantee for similar images, and its result on the images that set it; in percent."""

    agreement: float  # guaranteed, of the cascade with the teacher
    margin: float | None  # the student answers from here on; None: no threshold meets the guarantee
    escalated: float  # images that go to the teacher
    reached: float  # agreement of the cascade on these images
    problem: str = ""  # reason for a missing threshold


@dataclass(frozen=True)
class Point:
    """A place on the curve, in percent."""

    escalated: float
    agreement: float  # on these images
    promised: float  # lower bound at the confidence, for similar images


def margins(logits: Tensor) -> Tensor:
    """Return each image's margin of the first class over the second: (N, K) -> (N,) float64, at least 0.

    A temperature scales it and changes no order, so that the images that set a temperature can set a threshold too.
    """
    if logits.shape[1] < 2:
        return torch.zeros(len(logits), dtype=torch.float64)
    first, second = logits.double().topk(2, dim=1).values.unbind(1)
    return first - second


def images_needed(agreement: float, confidence: float) -> int:
    """Return the minimum number of images for a guarantee; both in percent, below 100.

    >>> images_needed(98, 95), images_needed(99, 95)
    (149, 299)
    """
    return math.ceil(math.log(1 - confidence / 100) / math.log(agreement / 100) - 1e-9)


class Cascade:
    """Predictions of teacher and student for N independent images, in order of the student's margin.

    Args:
        margin: (N,), at least 0.
        same: (N,) bool: the student predicts the teacher's class.
    """

    def __init__(self, margin: Tensor, same: Tensor) -> None:
        order = margin.argsort(descending=True, stable=True)
        self.margin, self.wrong = margin[order].double().numpy(), (~same[order]).numpy()
        self.count = len(margin)

    def at(self, threshold: float) -> tuple[float, float]:
        """Return a threshold's results on these images: percent escalated, percent of agreement."""
        kept = self.margin >= threshold
        return 100 * float(1 - kept.mean()), 100 * float(1 - (kept & self.wrong).mean())

    def threshold(self, agreement: float, confidence: float = CONFIDENCE) -> Threshold:
        """Return the lowest threshold whose guarantee holds; both arguments in percent, below 100.

        On similar images the cascade agrees with the teacher on at least `agreement` percent, except for 100 -
        confidence percent of misleading samples. The share of images that the student keeps and gets wrong falls as the
        threshold rises, so the exact binomial bound (Clopper and Pearson) at each threshold is enough, without a
        correction for multiple tests.

        Source: Bates et al., Distribution-free, risk-controlling prediction sets (arXiv 2101.02703), theorem 1.
        """
        allowed = self._allowed(agreement, confidence)
        if allowed < 0:
            needed = images_needed(agreement, confidence)
            return Threshold(agreement, None, 100.0, 100.0, f"it needs at least {needed:,} images")
        places = np.flatnonzero(self.wrong)
        if len(places) <= allowed:
            return Threshold(agreement, 0.0, *self.at(0.0))
        kept = self.margin[self.margin > self.margin[places[allowed]]]
        if not len(kept):
            return Threshold(agreement, None, 100.0, 100.0, "the student is wrong where it is surest")
        return Threshold(agreement, float(kept[-1]), *self.at(float(kept[-1])))

    def curve(self, confidence: float = CONFIDENCE) -> list[Point]:
        """Return the agreement over the share of images that go to the teacher, from none to all."""
        wrong = np.concatenate([[0], np.cumsum(self.wrong)])
        kept = np.unique(np.linspace(0, self.count, POINTS).round().astype(int))[::-1]
        points = []
        for keep in kept.tolist():
            lost = int(wrong[keep])
            bound = most(lost, self.count, confidence / 100) if keep else 0.0  # the teacher agrees with itself
            points.append(Point(*(100 * (1 - share) for share in (keep / self.count, lost / self.count, bound))))
        return points

    def _allowed(self, agreement: float, confidence: float) -> int:
        """Return the number of allowed wrong images that the student keeps; -1: even zero is too many."""
        share = 1 - agreement / 100
        low, high = -1, self.count  # the bound rises with the count: halve
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if most(middle, self.count, confidence / 100) <= share else (low, middle)
        return low


BATCH = 256


def answers_of_both(student: Student, teacher: Teacher, images: Tensor, compute: Compute) -> tuple[Tensor, Tensor]:
    """Return a student's logits and its teacher's classes, in the student's order: uint8 (N, 3, S, S) -> (N, K), (N,).

    Raises:
        KD3Error: they do not have the same classes, take images of other sizes, or have no finite logits.
    """
    order = places(student.classes, teacher.classes, whose="the student", other="the teacher")
    if teacher.input_size != student.input_size:
        raise KD3Error(
            f"the teacher takes images of {teacher.input_size} pixels but the student of {student.input_size}"
        )
    teacher = teacher.seeing(student.preparation)
    compute.place(student).eval()
    compute.place(teacher)
    own: list[Tensor] = []
    theirs: list[Tensor] = []
    with torch.inference_mode(), console.progress("student and teacher", len(images), "images") as bar:
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            batch = part.to(compute.device).contiguous(memory_format=torch.channels_last)
            own.append(finite(student(student.normalise(batch)), whose="the student's").double().cpu())
            theirs.append(
                finite(teacher(teacher.normalise(batch)), whose="the teacher's")[:, order].argmax(dim=1).cpu()
            )
            bar.advance(len(part))
    return torch.cat(own), torch.cat(theirs)


def measured(
    logits: Tensor, answers: Tensor, *, confidence: float = CONFIDENCE, agreements: Iterable[float] = AGREEMENTS
) -> dict[str, Any]:
    """Compare a student with its teacher, in percent except the temperature and the margins.

    Shapes: logits (N, K) of the student, answers (N,) of the teacher, on images that the student was not trained on.
    """
    cascade = Cascade(margins(logits), logits.argmax(dim=1) == answers)
    temperature = fit_temperature(logits, answers)
    scales = {"as trained": 1.0, "scaled": temperature}
    bins = {name: Reliability.of(logits, answers, scale) for name, scale in scales.items()}
    points = [asdict(one) for one in cascade.curve(confidence)]
    return {
        "temperature": round(temperature, 4),
        "confidence": confidence,
        "images": cascade.count,
        "agreement_alone": cascade.at(0.0)[1],
        "calibration_error": {name: round(one.error_percent, 2) for name, one in bins.items()},
        "thresholds": [asdict(cascade.threshold(agreement, confidence)) for agreement in sorted(set(agreements))],
        "curve": [{name: round(value, 3) for name, value in point.items()} for point in points],
        "reliability": {name: [asdict(one) for one in bins[name].bins()] for name in bins},
    }
