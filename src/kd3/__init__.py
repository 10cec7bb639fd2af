"""Distil a classifier whose training data is gone into a small one, on images from the web.

The names below are the public interface; each is imported when it is first used, so that
`import kd3` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kd3.version import __version__

_PUBLIC = {
    "ImagePool": "kd3.pool",
    "KD3Error": "kd3.runtime.errors",
    "Student": "kd3.models.student",
    "Teacher": "kd3.models.teacher",
    "adapt": "kd3.commands.adapt",
    "cascade": "kd3.commands.cascade",
    "distill": "kd3.commands.distill",
    "evaluate": "kd3.commands.evaluate",
    "export": "kd3.commands.export",
    "ingest": "kd3.pool",
    "load_student": "kd3.models.student_files",
    "load_teacher": "kd3.models.load_teacher",
    "plan": "kd3.commands.plan",
    "predict": "kd3.commands.predict",
    "report": "kd3.commands.report",
    "study": "kd3.commands.study",
    "select": "kd3.commands.select",
    "shift": "kd3.commands.shift",
}

__all__ = [
    "ImagePool",
    "KD3Error",
    "Student",
    "Teacher",
    "__version__",
    "adapt",
    "cascade",
    "distill",
    "evaluate",
    "export",
    "ingest",
    "load_student",
    "load_teacher",
    "plan",
    "predict",
    "report",
    "select",
    "shift",
    "study",
]

if TYPE_CHECKING:
    from kd3.commands.adapt import adapt
    from kd3.commands.cascade import cascade
    from kd3.commands.distill import distill
    from kd3.commands.evaluate import evaluate
    from kd3.commands.export import export
    from kd3.commands.plan import plan
    from kd3.commands.predict import predict
    from kd3.commands.report import report
    from kd3.commands.select import select
    from kd3.commands.shift import shift
    from kd3.commands.study import study
    from kd3.models.load_teacher import load_teacher
    from kd3.models.student import Student
    from kd3.models.student_files import load_student
    from kd3.models.teacher import Teacher
    from kd3.pool import ImagePool, ingest
    from kd3.runtime.errors import KD3Error


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'kd3' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
