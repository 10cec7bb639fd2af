"""Facts that a library has about its own trained network. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

RESAMPLING = {0: "nearest", 1: "Lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "Hamming"}  # Pillow's numbers


@dataclass(frozen=True)
class Facts:
    """Settings of a teacher's description, as far as known, and the preparation of its images.

    `settings` may hold num_classes, classes, mean, std, input_size and colours.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    preparation: str = ""  # in words: from a picture to the training square


def squashed(side: int, how: str) -> str:
    """Describe a picture squashed into a square."""
    return f"the whole picture squashed to {side} x {side}{f', {how}' if how else ''} (kd3 ingest --fit squash)"


def cropped(shorter: int, side: int, how: str) -> str:
    """Describe a centre crop."""
    resampled = f", {how}" if how else ""
    if shorter == side:
        return f"the shorter side to {side}, the middle {side} x {side}{resampled} (kd3 ingest --fit crop)"
    return (
        f"the shorter side to {shorter}{resampled}, the middle {side} x {side} of it (kd3 ingest --fit crop keeps "
        f"{100 * (shorter / side - 1):.0f} % more of each side)"
    )
