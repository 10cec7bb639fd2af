"""Threshold below which a cascade asks the teacher, and its guarantee.

The student answers where its margin, the largest logit less the second, reaches the threshold;
otherwise the teacher answers, which agrees with itself. So the cascade disagrees with the teacher exactly on images
that the student keeps and gets wrong, and their share can only fall as the threshold rises.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kd3.measure.intervals import most

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
