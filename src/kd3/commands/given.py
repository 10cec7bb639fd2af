"""Arguments of the Python interface: a path or a name, or a live object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from kd3.errors import KD3Error
from kd3.models.student import Student
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool

TEACHER = "a description file or a kd3.Teacher"
MODEL = "a run folder, a student folder, a teacher's description, a kd3.Teacher or a kd3.Student"
WRAPPED = "a live network is given as kd3.Teacher(module, mean=[...], std=[...], input_size=...)"


def told(value: Any, *, what: str, allowed: str, live: tuple[type, ...] = ()) -> str:
    """Return an argument's name in settings and messages: its path or name, or `live:NAME` for an object.

    Args:
        value: the argument.
        what: its name, at the start of the message ("kd3.distill: teacher").
        allowed: allowed values, in words.
        live: accepted types of live objects.

    Raises:
        KD3Error: it is neither a path nor such an object.
    """
    if isinstance(value, (str, Path)):
        return str(value)
    if isinstance(value, live):
        if isinstance(value, ImagePool):
            return str(value.path or "live:memory")
        return f"live:{value.name if isinstance(value, Teacher) else type(value).__name__}"
    folder = getattr(value, "folder", None)
    if isinstance(folder, Path):
        hint = f"; give its folder ({folder})"
    elif isinstance(value, nn.Module) and not isinstance(value, Teacher | Student) and Teacher in live:
        hint = f"; {WRAPPED}"
    else:
        hint = ""
    raise KD3Error(f"{what} is a live {type(value).__name__}, where {allowed} is expected{hint}")
