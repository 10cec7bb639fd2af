"""Conditions for asking the teacher, in words, from the record in a student's description. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def images_in_words(record: Mapping[str, Any]) -> str:
    """Describe the measured images."""
    if record["of"] == "deployment":
        return f"{record['images']:,} unlabelled images of {record['where']}"
    return f"{record['images']:,} held-out images of the pool {record['where']}"


def in_words(record: Mapping[str, Any]) -> list[str]:
    """Describe the choice, its guarantee and its images in sentences."""
    error = record["calibration_error"]
    if "threshold" not in record:
        chosen = "No threshold is chosen yet; kd3 cascade does it."
    elif not record["threshold"]:
        chosen = f"Chosen: {record['agreement']:g} %, which the student reaches without its teacher."
    else:
        chosen = (
            f"Chosen: {record['agreement']:g} %. The student asks the teacher where its largest logit is less than "
        )
        chosen += f"{record['threshold']:.3f} above the second."
    if record["of"] == "deployment":
        like = "The promise holds for images like these."
    else:
        like = "The promise holds for images like the crawl; images from where the student will work (--deployment) "
        like += "make a promise for those."
    scaled = f"Temperature {record['temperature']:.2f}: the student's probabilities miss the teacher's agreement by "
    scaled += f"{error['scaled']:.1f} points on average, as trained by {error['as trained']:.1f} (calibration error)."
    return [chosen, like, scaled]


def thresholds_in_words(record: Mapping[str, Any]) -> list[str]:
    """Return a line for each agreement, with the share of escalated images."""
    lines = [
        f"On {images_in_words(record)} the student agrees with its teacher on {record['agreement_alone']:.1f} %.",
        f"Agreement of the cascade, promised at {record['confidence']:g} % confidence:",
    ]
    for one in record["thresholds"]:
        if one["margin"] is None:
            lines.append(f"{one['agreement']:5g} %  no threshold: {one['problem']}")
        else:
            lines.append(f"{one['agreement']:5g} %  {one['escalated']:5.1f} % of the images go to the teacher")
    return lines
