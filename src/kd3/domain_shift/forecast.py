"""Forecast of a student's accuracy from the distance of its pool: a curve through earlier runs.

The curve and its pools are in `calibration.json`, made by `python -m benchmarks.shift_calibration`. With d the pool's
mean batch-norm distance, K the classes and C the effective classes of the teacher's predictions (exp of their entropy):

    -log(student's accuracy / teacher's accuracy)
        = distance * max(d - zero, 0) + classes * log(K / C) + budget / images trained + pool / images in the pool

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

# The curve is for students with a random start and no adaptation. With method kd3's defaults (inherited weights, a
# fitted teacher, recall) they reached more: docs/results/inherit-fit-recall.md.
BY_DEFAULT = "with what kd3 adds by default, students of 60,000 images reached 80 to 93% on seven crawls"
BUDGET = 200_000  # default training images of `kd3 distill`


@dataclass(frozen=True)
class Calibration:
    """Weights of the curve, distances of runs from it, and the data of its fit."""

    zero: float
    distance: float
    classes: float
    budget: float
    pool: float
    spread: tuple[float, float]  # factors on the loss: percentiles 10 and 90 over left-out pools
    farthest: float  # the largest mean batch-norm distance of a tested pool
    fewest: float  # the smallest `spread_of` classes of a tested pool


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
    loss = shift + known.budget / trained + known.pool / images
    low, high = (math.exp(-loss * factor) for factor in reversed(known.spread))
    beyond = distance > known.farthest or spread_of(effective_classes, classes) < known.fewest
    if beyond:
        low = min(low, 1 / classes)
    return Forecast(math.exp(-loss), low, high, 1 - math.exp(-shift), beyond)


def spread_of(effective_classes: float, classes: int) -> float:
    """Return the spread of predictions: 0 for one class, 1 for all K equally."""
    return (effective_classes - 1) / max(classes - 1, 1)


@cache
def shipped() -> Calibration:
    """Return the calibration that comes with kd3."""
    text = (resources.files("kd3.domain_shift") / "calibration.json").read_text(encoding="utf-8")
    return read_calibration(json.loads(text)["curve"])


def read_calibration(values: Mapping[str, Any]) -> Calibration:
    """Return the curve as `calibration.json` holds it."""
    return Calibration(**{**values, "spread": tuple(values["spread"])})
