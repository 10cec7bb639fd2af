"""Copying of a teacher's weights into a student, or a report of the obstacle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from kd3 import console
from kd3.errors import KD3Error
from kd3.inheritance.measured import measured_importance
from kd3.inheritance.plan import Inheritance, Part, inherit, plan_inheritance
from kd3.models.teacher import Teacher

Blocks = Literal["even", "change", "recovery"]


def planned(student: nn.Module, teacher: Teacher, sample: Tensor, *, blocks: Blocks) -> Inheritance:
    """Return the parts that a student can inherit; sample (B, 3, H, W) normalised, for measured blocks."""
    importance = None if blocks == "even" else measured_importance(teacher, sample, blocks)
    return plan_inheritance(student, teacher.module, importance=importance)


@dataclass(frozen=True)
class Row:
    """A block of the student, or a layer outside blocks: a line of the displayed table."""

    part: str
    source: str  # module path in the teacher; several, or "" for a random start
    how: str  # whole, channels, random
    parameters: int
    inherited: int  # of them


def rows(inheritance: Inheritance) -> list[Row]:
    """Return the parts of a student grouped by block."""
    groups: dict[str, list[Part]] = {}
    for part in inheritance.parts:
        groups.setdefault(_block(part.layer), []).append(part)
    found = []
    for name, parts in groups.items():
        sources = dict.fromkeys(_block(part.source) for part in parts if part.source is not None)
        hows = dict.fromkeys(part.how for part in parts)
        given = sum(part.parameters for part in parts if part.source is not None)
        total = sum(part.parameters for part in parts)
        found.append(Row(name, ", ".join(sources), " and ".join(hows), total, given))
    return found


def _block(layer: str) -> str:
    """Return the path of a layer's block, up to its number; otherwise the layer's own path."""
    names = layer.split(".")
    numbers = [place for place, name in enumerate(names[:-1]) if name.isdigit()]
    return ".".join(names[: numbers[0] + 1]) if numbers else layer


def inherited(
    student: nn.Module, teacher: Teacher, sample: Tensor, *, blocks: Blocks, name: str, must: bool = False
) -> Inheritance | None:
    """Copy all fitting parts into a student; return None, with a note, if too little fits.

    Raises:
        KD3Error: so little fits, and the student `must` inherit.
    """
    inheritance = planned(student, teacher, sample, blocks=blocks)
    if inheritance.is_empty and must:
        raise KD3Error(
            f"{name} cannot inherit from teacher {teacher.name}: only {100 * inheritance.share:.0f}% of its parameters "
            f"fit; use --init random, or a student of the teacher's family (see kd3 inspect --student)"
        )
    if inheritance.is_empty:
        console.say(f"{name} starts from random weights: its parts do not fit those of teacher {teacher.name}")
        return None
    inherit(student, teacher.module, inheritance)
    said = f"{name} inherits {100 * inheritance.share:.0f}% of its parameters from teacher {teacher.name}"
    console.say(said + (f"; {inheritance.problem}" if inheritance.problem else ""))
    return inheritance
