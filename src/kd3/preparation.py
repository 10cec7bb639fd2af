"""Preparation of a picture for a network, a record that pools and students keep. Free of torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Fit = Literal["crop", "squash"]
Resampling = Literal["bicubic"]
Colours = Literal["rgb"]
FITS: tuple[str, ...] = get_args(Fit)
IN_WORDS = {"crop": "the shorter side to size, then the centre", "squash": "the whole picture, distorted"}


@dataclass(frozen=True, slots=True)
class Preparation:
    """Treatment of a picture by `kd3.pool.pictures.read_picture`: for pools, tests, predictions and exports."""

    size: int  # side of the square, in pixels
    fit: Fit = "crop"
    resampling: Resampling = "bicubic"  # with antialiasing
    colours: Colours = "rgb"  # order of the channels
    channels: Literal[3] = 3

    def __str__(self) -> str:
        return f"{self.size} x {self.size} by {self.fit} ({IN_WORDS[self.fit]})"

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, values: Mapping[str, Any] | None, *, size: int) -> Preparation:
        """Read the result of `to_dict`; None (written by earlier versions) is the centre crop.

        Raises:
            ValueError: it needs something that this kd3 cannot do, or another size.
        """
        found = {"size": size, **(values or {})}
        allowed = {
            "size": (size,),
            "fit": FITS,
            "resampling": get_args(Resampling),
            "colours": get_args(Colours),
            "channels": (3,),
        }
        for name, value in found.items():
            if name not in allowed:
                raise ValueError(f"preparation.{name} is not known; known: {', '.join(allowed)}")
            if value not in allowed[name]:
                known = ", ".join(map(str, allowed[name]))
                raise ValueError(f"preparation.{name} is {value!r}; this kd3 knows {known}")
        return cls(**found)
