"""Arguments of commands: a path, a name or a live object, and the settings, teacher and pool of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from kd3.config.run_records import read_settings, read_summary
from kd3.models.load_teacher import load_teacher
from kd3.models.student import Student
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool
from kd3.runtime.errors import KD3Error
from kd3.runtime.run_folder import RunFolder, find

TEACHER = "a description file or a kd3.Teacher"
MODEL = "a run folder, a student folder, a teacher's description, a kd3.Teacher or a kd3.Student"
POOL = "a folder or an ImagePool"
WRAPPED = "a live network is given as kd3.Teacher(module, mean=[...], std=[...], input_size=...)"


def as_setting(value: Any, *, what: str, allowed: str, live: tuple[type, ...] = ()) -> str:
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


def optional_setting(value: Any, *, what: str, allowed: str, live: tuple[type, ...] = ()) -> str | None:
    """Return None for None, otherwise `as_setting`."""
    return None if value is None else as_setting(value, what=what, allowed=allowed, live=live)


Kind = TypeVar("Kind")


def if_live(value: Any, kind: type[Kind]) -> Kind | None:
    """Return an argument that is a live object of this kind, otherwise None."""
    return value if isinstance(value, kind) else None


def run_settings(command: str, run: Any, *, teacher: Any, pool: Any, **images: Any) -> dict[str, str | None]:
    """Return the settings by which a command finds a finished run, its teacher and pool, and other `images`.

    Raises:
        KD3Error: one is neither a path nor an accepted object.
    """
    return {
        "run": as_setting(run, what=f"{command}: run", allowed="a run folder"),
        "teacher": optional_setting(teacher, what=f"{command}: teacher", allowed=TEACHER, live=(Teacher,)),
        "pool": optional_setting(pool, what=f"{command}: pool", allowed=POOL, live=(ImagePool,)),
        **{
            name: optional_setting(value, what=f"{command}: {name}", allowed="a path") for name, value in images.items()
        },
    }


def check_finished(folder: RunFolder) -> None:
    """Refuse a folder that is not a run, or a run that is not finished."""
    if not folder.config.is_file():
        raise KD3Error(f"{folder.path} is no run folder; give one that `kd3 distill --out` made")
    if not folder.summary.is_file():
        raise KD3Error(f"the run {folder.path} is not finished; finish it with: {folder.resume_command}")
    read_summary(folder.path)


def checked_teacher(
    folder: RunFolder, student: Student, *, live: Teacher | None, given: str | None, trust_code: bool
) -> Teacher:
    """Return a run's teacher: a `live` one, the one at a place that is `given`, or that of the run's settings.

    One of unknown size takes images as large as the student's.

    Raises:
        KD3Error: it cannot be had, is not the run's, or takes images of another size now.
    """
    teacher = live or _teacher_of(folder, given=given, trust_code=trust_code)
    if teacher.input_size is None:
        teacher.fit_to(student.input_size)
    check_identity(folder, "teacher", teacher.fingerprint())
    if teacher.input_size != student.input_size:
        raise KD3Error(
            f"the teacher takes images of {teacher.input_size} pixels but the student of {folder.path} of "
            f"{student.input_size}; give the description that the run had: --teacher"
        )
    return teacher


def _teacher_of(folder: RunFolder, *, given: str | None, trust_code: bool) -> Teacher:
    """Return its teacher, from the run's record or the user's new location (`given`).

    Raises:
        KD3Error: it is missing, or was a live one.
    """
    named = given or read_settings(folder)[0].teacher
    if named.startswith("live:"):
        raise KD3Error(f"the teacher of {folder.path} was a live one; give a description of it: --teacher")
    # The user's location takes precedence over the run's.
    place = named if given else find(folder.path, "teacher", named)
    try:
        return load_teacher(place, trust_code=trust_code or (None if given else False))
    except KD3Error as problem:
        if given:
            raise
        raise KD3Error(f"{problem}; say where the teacher of {folder.path} is now: --teacher") from None


def pool_of(folder: RunFolder, *, given: str | None, instead: str) -> ImagePool:
    """Return its pool, likewise; `instead` is the flag for the user's own images in place of the pool.

    Raises:
        KD3Error: it is missing, or was a live one.
    """
    named = given or read_settings(folder)[0].pool
    if named.startswith("live:"):
        raise KD3Error(f"the pool of {folder.path} was a live one; give images: {instead}")
    try:
        place = named if given else find(folder.path, "pool", named)
    except KD3Error as problem:  # it names --pool
        raise KD3Error(f"{problem}; {instead} IMAGES works without the pool") from None
    try:
        return ImagePool.open(place)
    except KD3Error as problem:
        if given:
            raise
        raise KD3Error(
            f"{problem}; say where the pool of {folder.path} is now (--pool), or give images: {instead}"
        ) from None


def check_identity(folder: RunFolder, what: str, now: str) -> None:
    """Refuse a teacher or pool (`what`) other than the run's, by its hash."""
    try:
        folder.check_origin(**{what: now})
    except KD3Error as problem:
        if "cannot be read" in str(problem):
            raise
        raise KD3Error(f"--{what} is not the {what} of the run {folder.path}; bring that one") from None
