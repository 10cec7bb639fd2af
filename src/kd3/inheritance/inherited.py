"""Give a student its teacher's weights, or say why it starts at random."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from kd3 import console
from kd3.inheritance.measured import measured_importance
from kd3.inheritance.plan import Inheritance, inherit, plan_inheritance
from kd3.models.teacher import Teacher

Blocks = Literal["even", "change", "recovery"]


def planned(student: nn.Module, teacher: Teacher, sample: Tensor, *, blocks: Blocks) -> Inheritance:
    """Return what a student can take from its teacher; sample (B, 3, H, W) normalised, for blocks that are measured."""
    importance = None if blocks == "even" else measured_importance(teacher, sample, blocks)
    return plan_inheritance(student, teacher.module, importance=importance)


def inherited(student: nn.Module, teacher: Teacher, sample: Tensor, *, blocks: Blocks, name: str) -> Inheritance | None:
    """Copy into a student what fits; return None, with a note, where so little does that it starts at random."""
    inheritance = planned(student, teacher, sample, blocks=blocks)
    if inheritance.is_empty:
        console.say(f"{name} starts from random weights: its parts do not fit those of teacher {teacher.name}")
        return None
    inherit(student, teacher.module, inheritance)
    said = f"{name} inherits {100 * inheritance.share:.0f}% of its parameters from teacher {teacher.name}"
    console.say(said + (f"; {inheritance.problem}" if inheritance.problem else ""))
    return inheritance
