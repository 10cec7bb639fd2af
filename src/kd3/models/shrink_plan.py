"""Plan of a smaller network: the parts kept from a larger one. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, Field

from kd3.config.settings import Settings


class ShrinkPlan(Settings):
    """Parts of a larger network that a smaller one keeps; part of a student's `config.json`."""

    model_config = ConfigDict(extra="ignore")

    share: float = Field(gt=0, le=1, description="of the multiply-adds, as asked for")
    multiply_adds: int = Field(ge=0, description="of an image, after")
    multiply_adds_before: int = Field(ge=1)
    parameters: int = Field(ge=1)
    parameters_before: int = Field(ge=1)
    blocks: list[str] = Field([], description="paths of the modules that pass their input on")
    kept: list[list[int]] = Field([], description="sets of channels, in rising order")
    tensors: dict[str, list[int | None]] = Field(
        {}, description="for each axis of a parameter or buffer, the place in `kept` of what it keeps; null: all"
    )
    sizes: dict[str, dict[str, int | list[int]]] = Field(
        {}, description="numbers that a module remembers of its own size (in_channels), as they become"
    )

    @property
    def reached(self) -> float:
        """Share of the multiply-adds left, in (0, 1]."""
        return self.multiply_adds / self.multiply_adds_before


def architecture_in_words(about: Mapping[str, Any]) -> str | None:
    """Describe in words the network of a student's `config.json`; None for a live module."""
    arch, plan = about["arch"], about.get("shrunk")
    if plan is None:
        return arch  # type: ignore[no-any-return]  # checked when it was read
    reached = ShrinkPlan.model_validate(plan).reached
    return f"{arch or 'a module of your own'}, shrunk to {100 * reached:.0f}% of its multiply-adds"
