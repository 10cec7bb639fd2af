"""Warnings about a training, each reported once per run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SETTLED = 0.1  # part of the budget before which no agreement with the teacher is expected
FALLEN = 5.0  # points of agreement below the best, at two evaluations in a row
HARDLY_ANY = 0.01  # of the pool
ONE_CLASS = 0.95  # share of the student's predictions, if the teacher's share is below TEACHERS_SHARE
TEACHERS_SHARE = 0.8
SHOWN = 8


class Health:
    """Monitor of a run's events; `notes` returns new problems.

    Args:
        classes: their names.
        budget: training images of the whole run.
    """

    def __init__(self, classes: Sequence[str], budget: int) -> None:
        self._classes = ["".join(sign if sign.isprintable() else "?" for sign in name) for name in classes]
        self._budget = budget
        self._best = 0.0
        self._low = 0  # evaluations in a row

    def notes(self, event: str, values: Mapping[str, Any]) -> list[str]:
        """Return the problems that an event shows."""
        if event == "selection":
            return self._of_selection(values)
        if event == "evaluation":
            return self._of_agreement(values)
        return []

    def _of_selection(self, values: Mapping[str, Any]) -> list[str]:
        notes = []
        if values["kept"] < HARDLY_ANY * values["of"]:
            notes.append(
                f"the selection keeps {values['kept']:,} of {values['of']:,} images: the networks are sure of hardly "
                f"any image of the pool; kd3 shift measures its distance from the lost data"
            )
        kept, rescued = values.get("kept_per_class"), set(values.get("rescued_classes") or ())
        if kept:
            none = [name for label, name in enumerate(self._classes) if not kept[label] and label not in rescued]
            if none:
                shown = ", ".join(none[:SHOWN]) + (", ..." if len(none) > SHOWN else "")
                notes.append(f"{len(none)} of {len(kept)} classes receive no image: {shown}")
        return notes

    def _of_agreement(self, values: Mapping[str, Any]) -> list[str]:
        agreement, chance = float(values["agreement"]), 100 / len(self._classes)
        notes = []
        if values["images"] >= SETTLED * self._budget and agreement <= chance:
            notes.append(
                f"the student agrees with the teacher on {agreement:.1f}% of the held-out images, no more than chance "
                f"({chance:.3g}%): it learns nothing; try a lower --lr and --matrix-lr, or kd3 inspect --pool for the "
                f"teacher's mean and std"
            )
        self._low = self._low + 1 if agreement < self._best - FALLEN else 0
        if self._low == 2:
            notes.append(
                f"agreement has fallen from {self._best:.1f}% to {agreement:.1f}%; the best student so far is kept; "
                f"a lower --lr may help"
            )
        self._best = max(self._best, agreement)
        own, theirs = values.get("commonest"), values.get("teachers_share_of_it")
        if own is not None and theirs is not None and own >= ONE_CLASS and theirs < TEACHERS_SHARE:
            notes.append(
                f"the student predicts one class for {100 * own:.0f}% of the held-out images (teacher: "
                f"{100 * theirs:.0f}%)"
            )
        return notes
