"""Open any classifier: a run folder, a student folder, or a teacher description."""

from __future__ import annotations

from pathlib import Path

from kd3.errors import KD3Error
from kd3.models.load_teacher import is_named, load_teacher
from kd3.models.student import Student
from kd3.models.student_files import DESCRIPTION, load_student
from kd3.models.teacher import Teacher


def load_classifier(path: str | Path, *, trust_code: bool = False) -> Teacher | Student:
    """Return the classifier at a path. Both kinds map normalised images to logits.

    `trust_code` lets the folder of a student or a teacher run the code that it names. A description named as a file is
    the user's own and needs no consent.

    Raises:
        KD3Error: there is no classifier, or it is damaged.
    """
    if is_named(path):
        return load_teacher(path)
    path = Path(path)
    if not path.exists():
        raise KD3Error(
            f"model {path} does not exist; give a run folder, a student/ folder or a teacher description (YAML)"
        )
    if path.is_file():
        if path.suffix.lower() not in (".yaml", ".yml"):
            raise KD3Error(f"model {path} is not a folder or a teacher description (.yaml)")
        return load_teacher(path)
    if (path / DESCRIPTION).is_file() or (path / "student" / DESCRIPTION).is_file():
        return load_student(path, trust_code=trust_code)
    if (path / "origin.json").is_file():
        raise KD3Error(f"the run {path} is not finished and has no student yet; continue it with --resume")
    if any(path.glob("*.yaml")) or any(path.glob("*.yml")):
        return load_teacher(path, trust_code=trust_code)
    raise KD3Error(f"{path} holds neither a run, nor a student, nor a teacher description")
