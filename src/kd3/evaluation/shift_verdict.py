"""Meaning of a pool's distance for a distillation: a forecast of the accuracy, and the verdict in words.

Forecast of a student's accuracy from the distance of its pool: a curve through earlier runs.

The curve and its pools are in `calibration.json`, made by `python -m benchmarks.shift_calibration`. With d the pool's
mean batch-norm distance, K the classes and C the effective classes of the teacher's predictions (exp of their entropy):

    -log(student's accuracy / teacher's accuracy)
        = student + distance * max(d - zero, 0) + classes * log(K / C) + budget / images trained + pool / pool's images

`zero` is the value for original training images. The teacher's confidence had no predictive value and is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from kd3.evaluation.shift_distances import FeatureShift
from kd3.evaluation.shift_statistics import BatchNormShift, Kept, Opinions

# The curve is for students of method kd3's defaults: inherited weights, a fitted teacher, recall. Without
# inheritance ResNet-20 reached 86% instead of 94% of its teacher's accuracy on the plain crawl, and the smaller
# WRN-16-1 72% where ResNet-20 reached 87% on a blurred one, after 60,000 images (docs/results/inherit-fit-recall.md).
WITHOUT_INHERITANCE = "students that inherited nothing ended 7 to 15 points lower"
FEW = 2000  # images of a pool; 900 far ones taught far less than the curve says of many
BUDGET = 200_000  # default training images of `kd3 distill`


@dataclass(frozen=True)
class Calibration:
    """Weights of the curve, distances of runs from it, and the data of its fit."""

    zero: float
    student: float  # what the smaller network costs
    distance: float
    classes: float
    budget: float
    pool: float
    spread: tuple[float, float]  # factors on the loss: percentiles 10 and 90 over left-out pools
    farthest: float  # the largest mean batch-norm distance of a tested pool
    fewest: float  # the smallest `evenness` of predictions of a tested pool
    farthest_of_few: float  # the largest distance of a tested pool of fewer than `FEW` images


@dataclass(frozen=True)
class Forecast:
    """Accuracies are shares of the teacher's, in [0, 1]."""

    expected: float
    low: float
    high: float
    lost: float  # share of accuracy lost by the shift only, in [0, 1]
    beyond: bool  # the pool is farther than any tested one


def forecast(
    distance: float,
    effective_classes: float,
    *,
    classes: int,
    images: int,
    trained: int = BUDGET,
    calibration: Calibration | None = None,
) -> Forecast:
    """Return the expected accuracy of a student.

    Args:
        distance: the mean over batch norms of `BatchNormShift`, at least 0.
        effective_classes: C, in [1, K].
        classes: K.
        images: in the pool, at least 1.
        trained: budget in training images.
        calibration: None: kd3's own.
    """
    known = calibration or shipped()
    shift = known.distance * max(distance - known.zero, 0.0) + known.classes * math.log(classes / effective_classes)
    loss = known.student + shift + known.budget / trained + known.pool / images
    low, high = (math.exp(-loss * factor) for factor in reversed(known.spread))
    farthest = known.farthest_of_few if images < FEW else known.farthest
    beyond = distance > farthest or evenness(effective_classes, classes) < known.fewest
    if beyond:
        low = min(low, 1 / classes)
    return Forecast(math.exp(-loss), low, high, 1 - math.exp(-shift), beyond)


def evenness(effective_classes: float, classes: int) -> float:
    """Return the spread of predictions: 0 for one class, 1 for all K equally."""
    return (effective_classes - 1) / max(classes - 1, 1)


@cache
def shipped() -> Calibration:
    """Return the calibration that comes with kd3."""
    return read_calibration(_calibration()["curve"])


def errors_on_pools_left_out() -> Mapping[str, float]:
    """Return its test: `points`, `pools`, `mean_error` in points of accuracy, points `inside` their range."""
    tested: dict[str, float] = _calibration()["left_out"]
    return tested


@cache
def _calibration() -> dict[str, Any]:
    text = (resources.files("kd3.evaluation") / "calibration.json").read_text(encoding="utf-8")
    made: dict[str, Any] = json.loads(text)
    return made


def read_calibration(values: Mapping[str, Any]) -> Calibration:
    """Return the curve as `calibration.json` holds it."""
    return Calibration(**{**values, "spread": tuple(values["spread"])})


# Share of a student's accuracy lost by the shift, from the calibrated curve. Below the first bound it is within the
# noise of seeds; beyond the second it is more than twice the curve's mean error.
LITTLE_LOST, MUCH_LOST = 0.02, 0.1
# A class predicted for less than a tenth of an even share of the images.
HARDLY_COVERED = 0.1
# A distance below this multiple of that between two draws of one side may be chance.
LIKE_CHANCE = 1.5
_SHOWN = 8
_MEANINGS = {
    "near": "is near the teacher's training data",
    "shifted": "is shifted from the teacher's training data",
    "far": "is far from the teacher's training data",
    "unknown": "cannot be compared with the teacher's training data, since no batch norms remember it",
}


@dataclass(frozen=True)
class Verdict:
    """The verdict in a sentence, with reasons."""

    level: str  # "near", "shifted", "far", or "unknown" where the teacher has no batch norms
    sentence: str  # of the crawl, and what a student may reach
    reasons: list[str]
    hardly_covered: list[str]  # classes
    forecast: Forecast | None  # None where the level is unknown
    about_crawl: str  # the sentence without what a student may reach


def hardly_covered(opinions: Opinions) -> list[str]:
    """Return the classes predicted for less than a tenth of an even share of the images."""
    even = opinions.images / len(opinions.classes)
    pairs = zip(opinions.classes, opinions.predicted, strict=True)
    return [name for name, count in pairs if count < HARDLY_COVERED * even]


def judge(
    opinions: Opinions,
    kept: Kept,
    norms: BatchNormShift | None,
    features: FeatureShift | None = None,
    *,
    pool_images: int | None = None,
) -> Verdict:
    """Return the verdict of all figures.

    The level follows the expected loss (`forecast`): "near" below a fiftieth of the student's accuracy, "far" from a
    tenth on or if the pool is farther than any tested one, otherwise "shifted". It depends only on the mean batch norm
    distance and the effective classes: the teacher's confidence had no predictive value. `pool_images` is the pool's
    size, if `opinions` are from a sample.
    """
    rare = hardly_covered(opinions)
    covered = f"{_named(rare)} hardly covered" if rare else "every class is covered"
    expected = None
    if norms is not None:
        classes = len(opinions.classes)
        expected = forecast(
            norms.mean, opinions.effective_classes, classes=classes, images=pool_images or opinions.images
        )
    level = _level(expected)
    sentence = about_crawl = f"This pool {_MEANINGS[level]}; {covered}."
    if expected is not None:
        sentence += f" {_expected(expected)}"
    reasons = [_layers(norms), _balance(opinions), _kept(kept)]
    if features is not None:
        reasons.append(_features(features))
    return Verdict(level, sentence, reasons, rare, expected, about_crawl)


def _level(expected: Forecast | None) -> str:
    if expected is None:
        return "unknown"
    if expected.beyond or expected.lost >= MUCH_LOST:
        return "far"
    return "near" if expected.lost < LITTLE_LOST else "shifted"


def _expected(expected: Forecast) -> str:
    if expected.beyond:
        return (
            f"It is farther than any pool that was tried: expect no more than {_percent(expected.high)} of the "
            f"teacher's accuracy."
        )
    test = errors_on_pools_left_out()
    return (
        f"A student of {BUDGET:,} training images that inherits the teacher's weights is expected to reach "
        f"{100 * expected.low:.0f} to {_percent(expected.high)} of the teacher's accuracy (of {test['points']} test "
        f"runs on other pools, {test['inside']} ended in the range given for them); {WITHOUT_INHERITANCE}."
    )


def _kept(kept: Kept) -> str:
    words = f"the paper's selection (kd3 select) would keep {_percent(kept.share)} of the images"
    if kept.rescued:
        words += f"; {_named(kept.rescued, verb=False)} would keep none by the thresholds alone"
    return words


def _balance(opinions: Opinions) -> str:
    classes = len(opinions.classes)
    return f"the teacher's predictions spread like {opinions.effective_classes:.1f} equal classes of {classes}"


def _layers(norms: BatchNormShift | None) -> str:
    if norms is None:
        return "the teacher has no batch norm with running statistics, so its layers tell nothing"
    return (
        f"the mean batch-norm distance is {norms.mean:.3f}, where original images gave 0.01 to 0.04: {norms.last:.3f} "
        f"in the last layers, largest at {norms.worst}"
    )


def _features(features: FeatureShift) -> str:
    frechet = features.distance("frechet").equal_size
    words = f"the Fréchet distance to the reference is {frechet.mean:.3g} at {frechet.images:,} images of either side"
    if frechet.same is None:
        return f"{words}; too few images to say what no shift would give"
    if frechet.mean <= LIKE_CHANCE * frechet.same:
        return f"{words}, hardly more than the {frechet.same:.3g} of two draws of one side: no shift can be told"
    return f"{words}, where two draws of one side give {frechet.same:.3g}"


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:.0f}%" if percent >= 1 or percent == 0 else f"{percent:.2g}%"


def _named(names: list[str], *, verb: bool = True) -> str:
    """Return "class ship is", "classes ship and truck are", "classes a, b, ... (12 in all) are"."""
    if len(names) > _SHOWN:
        words = f"{', '.join(names[:_SHOWN])}, ... ({len(names)} in all)"
    else:
        words = " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
    kind, be = ("classes", "are") if len(names) > 1 else ("class", "is")
    return f"{kind} {words} {be}" if verb else f"{kind} {words}"
