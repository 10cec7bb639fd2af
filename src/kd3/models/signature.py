"""Input size, normalisation and class names: a student has its teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kd3.preparation import Fit, Preparation


@dataclass(frozen=True)
class Signature:
    """Normalisation and size of the input, names of the classes, preparation of pictures."""

    mean: Sequence[float]  # per channel of RGB in [0, 1]
    std: Sequence[float]
    input_size: int  # pixels
    classes: Sequence[str]  # in the order of the logits
    fit: Fit = "crop"

    @property
    def preparation(self) -> Preparation:
        """Preparation of a picture for the input."""
        return Preparation(self.input_size, self.fit)
