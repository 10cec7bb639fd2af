"""Effect of an adaptation on a student, in words, from its record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def images_in_words(record: Mapping[str, Any]) -> str:
    """Describe the images for the statistics."""
    where = Path(str(record["where"])).name or str(record["where"])
    if record["kind"] == "recalled":
        return f"{record['images']:,} images recalled from the teacher (begun as images of the pool {where})"
    if record["kind"] == "recalled from given":
        return f"{record['images']:,} images recalled from the teacher (begun as unlabelled images of {where})"
    return f"{record['images']:,} unlabelled images of {where}"


def in_words(record: Mapping[str, Any]) -> str:
    """Describe the adaptation in one sentence."""
    images, before = images_in_words(record), record["agreement_before"]
    if not record["share"]:
        return (
            f"The student stays as trained: batch-norm statistics of {images} do not bring it closer to the teacher on "
            f"them; they agree on {before:.1f} %."
        )
    words = (
        f"The student takes {100 * record['share']:.0f} % of its batch-norm statistics from {images}: on these it "
        f"agrees with the teacher on {record['agreement_after']:.1f} %, as trained on {before:.1f} %"
    )
    if record.get("accuracy_before") is not None:
        words += f"; it is right on {record['accuracy_after']:.2f} % of --eval-data, as trained on "
        words += f"{record['accuracy_before']:.2f} %"
    return words + "."


def distances_in_words(record: Mapping[str, Any]) -> str:
    """Describe the distance of the statistics before and after."""
    words = (
        f"Mean batch-norm distance of the student from these images: {record['distance_before']:.3f} as trained, "
        f"{record['distance_after']:.3f} now."
    )
    if record["gap_before"] is not None:
        words += (
            f" Distance of the images from what the teacher remembers: {record['gap_before']:.3f} before, "
            f"{record['gap_after']:.3f} recalled."
        )
    if record["kept_out"]:
        words += f" {record['kept_out']:,} images like a test image were left out."
    return words


def with_adaptation(summary: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's summary with an adaptation: its accuracy is that of the shipped student."""
    trained = summary.get("accuracy_as_trained", summary.get("accuracy"))
    accuracy = record["accuracy_after"] if record["share"] else trained
    teachers = summary.get("teacher_accuracy")
    return {
        **summary,
        "recall": dict(record),
        "accuracy": accuracy,
        "accuracy_as_trained": trained,
        "difference": None if accuracy is None or teachers is None else accuracy - teachers,
    }
