"""`shrink:0.3`, the notation for a teacher made smaller, and the plan of the parts that it keeps. Free of torch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict, Field

from kd3.config.settings import Settings

PREFIX = "shrink"
FORMS = "shrink:SHARE, shrink:depth:SHARE or shrink:width:SHARE, where SHARE is a part of the teacher's multiply-adds"


@dataclass(frozen=True)
class Shrink:
    """Share of a teacher that a student keeps, and the kind of parts to remove."""

    share: float  # of the teacher's multiply-adds at most, in (0, 1]
    kind: Literal["any", "depth", "width"] = "any"  # any: blocks first, channels for what is left

    def __str__(self) -> str:
        """Return the notation of `parse_shrink`."""
        return f"{PREFIX}:{self.share:g}" if self.kind == "any" else f"{PREFIX}:{self.kind}:{self.share:g}"


def parse_shrink(student: str) -> Shrink | None:
    """Parse `shrink:...`; None for any other architecture.

    >>> parse_shrink("shrink:0.3"), parse_shrink("kd3:resnet20")
    (Shrink(share=0.3, kind='any'), None)

    Raises:
        ValueError: the kind is unknown, or the share is no number in (0, 1].
    """
    prefix, _, rest = student.partition(":")
    if prefix != PREFIX:
        return None
    kind, colon, share = rest.rpartition(":")
    if colon and kind not in ("depth", "width"):
        near = difflib.get_close_matches(kind, ("depth", "width"), n=1)
        raise ValueError(
            f"{student}: unknown kind {kind!r}{f'; did you mean {near[0]!r}?' if near else ''}; write {FORMS}"
        )
    try:
        value = float(share)
    except ValueError:
        raise ValueError(f"{student}: {share!r} is not a number; write {FORMS}") from None
    if not 0 < value <= 1:
        raise ValueError(f"{student}: the share must be greater than 0 and at most 1; write {FORMS}")
    return Shrink(value, kind or "any")  # type: ignore[arg-type]  # checked above


def is_shrunk(student: str) -> bool:
    """Return whether a student is a shrunken teacher.

    Raises:
        ValueError: as `parse_shrink`.
    """
    return parse_shrink(student) is not None


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
