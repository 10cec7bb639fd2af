"""Conversion of a run's events to named numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MOST_CLASSES = 100  # with their own curves
PLACE = ("event", "step", "images", "seconds")


def scalars(event: str, values: Mapping[str, Any], classes: Sequence[str]) -> dict[str, float]:
    """Return the numbers of an event by the names of their curves; per class if there are few.

    >>> scalars("evaluation", {"step": 10, "images": 640, "seconds": 1.0, "agreement": 50.0}, [])
    {'agreement/held_out_web_images': 50.0}
    """
    if event == "train":
        return {_name(name): float(value) for name, value in values.items() if name not in PLACE}
    if event == "evaluation":
        named = {
            "agreement": "agreement/held_out_web_images",
            "divergence": "divergence/held_out_web_images",
            "accuracy": "accuracy/labelled_images",
        }
        return {label: float(values[name]) for name, label in named.items() if name in values}
    if event != "selection":
        return {}
    found = {"selection/kept_percent": 100 * values["kept"] / values["of"]}
    if len(classes) <= MOST_CLASSES:
        for group, name in (("kept", "kept_per_class"), ("threshold", "thresholds")):
            if values.get(name):
                pairs = zip(classes, values[name], strict=True)
                found |= {f"{group}/{_plain(label)}": float(value) for label, value in pairs}
    return found


def _name(name: str) -> str:
    return {"lr": "training/learning_rate", "images_per_second": "training/images_per_second"}.get(name, f"loss/{name}")


def _plain(label: str) -> str:
    """Convert a class name to characters that all trackers accept: letters, digits and a few signs."""
    return "".join(sign if sign.isalnum() or sign in "-_. " else "_" for sign in label)
