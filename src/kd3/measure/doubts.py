"""Signs that an accuracy reflects mixed-up labels rather than the model."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom

from kd3.class_names import some
from kd3.pool.class_matching import Matching

MOST_OF = 0.6  # of a class's images predicted as one other class, one-to-one
OWN = 0.25  # of these correct, at most
ENOUGH = 3  # images of each such class
FAR_BELOW = 0.5  # of what chance gives
BY_CHANCE = 0.01  # probability of an accuracy that low by chance
SHOWN = 4


def doubts(confusion: np.ndarray, matching: Matching) -> list[str]:
    """Return doubts about the order of the classes, in sentences.

    Args:
        confusion: counts (K, K), [label, prediction].
        matching: of the labels to the classes.
    """
    counts = confusion.sum(axis=1)
    total, right, classes = int(counts.sum()), int(np.trace(confusion)), len(counts)
    moved = _moved(confusion)
    if len(moved) > 1:
        return [_permuted(moved, confusion, matching)]
    if total and right / total < FAR_BELOW / classes and binom.cdf(right, total, 1 / classes) < BY_CHANCE:
        return [
            f"{100 * right / total:.1f} % right is far below chance ({100 / classes:.3g} %): are the classes in "
            f"another order than the labels, or is the preprocessing not the model's?"
        ]
    return []


def _moved(confusion: np.ndarray) -> dict[int, int]:
    """Return classes nearly always predicted as one other class, by the best one-to-one assignment."""
    labels, called = linear_sum_assignment(confusion, maximize=True)
    counts = confusion.sum(axis=1)
    moved = {
        int(label): int(other)
        for label, other in zip(labels, called, strict=True)
        if label != other
        and confusion[label, other] >= MOST_OF * counts[label]
        and confusion[label, label] <= OWN * confusion[label, other]
        and counts[label] > 0
    }
    images = sum(int(counts[label]) for label in moved)
    return moved if images >= ENOUGH * len(moved) else {}


def _permuted(moved: dict[int, int], confusion: np.ndarray, matching: Matching) -> str:
    said = {place: key for key, place in matching.labels.items()}
    pairs = [
        f"{said[label]!r} is called {matching.called(other)!r}"
        for label, other in list(moved.items())[:SHOWN]
        if label in said
    ]
    fit = {label: moved.get(label, label) for label in said if confusion[label].any()}
    total, hits = int(confusion.sum()), sum(int(confusion[label, other]) for label, other in fit.items())
    words = (
        f"the classes look as if they were in another order than the labels: {', '.join(pairs)}"
        f"{', ...' if len(moved) > SHOWN else ''}; in that order {100 * hits / total:.1f} % are right"
    )
    if pattern := _pattern(fit, matching):
        words += f" ({pattern})"
    order = {other: said[label] for label, other in fit.items()}
    if len(order) < len(matching.classes):
        return words + "; if so, name the model's classes in the order of its logits"
    names = [order[place] for place in range(len(matching.classes))]
    return words + f"; if so, the model's classes are [{some(names, most=12)}], in the order of its logits"


def _pattern(fit: dict[int, int], matching: Matching) -> str:
    """Return the known cause of this order, in words."""
    if {abs(other - label) for label, other in fit.items()} == {1} and len(fit) > 2:
        return "one counts from 0, the other from 1"
    said = {place: key for key, place in matching.labels.items()}
    by_text = sorted(fit, key=lambda label: said[label])
    if [fit[label] for label in by_text] == sorted(fit.values()):
        return "the order of their names as text, in which torchvision's ImageFolder numbers folders"
    return ""
