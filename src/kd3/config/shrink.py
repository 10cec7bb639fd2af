"""`shrink:0.3`: the notation for a student that is its teacher made smaller. Free of torch."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

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
