"""`kd3 classes`: the names of a student's classes, shown or given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd3.config.commands import ClassesConfig
from kd3.config.records import SHOWN, are_numbers, class_name
from kd3.config.run_records import read_summary
from kd3.config.settings import read_yaml
from kd3.models.student_files import DESCRIPTION, read_student_description, student_folder
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import exclusive, write_json
from kd3.runtime.run_folder import RunFolder
from kd3.runtime.text import one_line


@dataclass(frozen=True)
class Classes:
    """A student's classes, in the order of its logits."""

    student: Path
    classes: list[str]
    before: list[str] | None  # the former names after a renaming

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return {"student": str(self.student), "classes": self.classes, "before": self.before}

    def __str__(self) -> str:
        if self.before is None:
            lines = [f"{number:>5}  {one_line(name)}" for number, name in enumerate(self.classes)]
            if are_numbers(self.classes):
                lines = [f"{len(self.classes)} classes without names; give them with --names"]
            return "\n".join([one_line(str(self.student)), *lines])
        rows = [
            one_line(f"{number:>5}  {name}  (was {old})" if name != old else f"{number:>5}  {name}")
            for number, (name, old) in enumerate(zip(self.classes, self.before, strict=True))
        ]
        more = [f"  ... {len(rows) - SHOWN:,} more"] if len(rows) > SHOWN else []
        first, last = f"named the classes of {self.student}", ["earlier exports keep the old names"]
        if self.classes == self.before:
            first, last = f"the classes of {self.student} have these names already", []
        return "\n".join([one_line(first), *rows[:SHOWN], *more, *last])


def run(config: ClassesConfig) -> Classes:
    """Show a student's classes, or name them: in its description, and in the summary of its run.

    Raises:
        KD3Error: there is no student, the number of names differs from that of its classes, a name is repeated, or
            another process is at work on the run.
    """
    folder = student_folder(Path(config.model))
    about = read_student_description(folder)
    before = [str(name) for name in about["classes"]]
    if config.names is None:
        return Classes(folder, before, None)
    names = _names(config.names)
    if len(names) != len(before):
        raise KD3Error(f"--names gives {len(names)} names but the student in {folder} knows {len(before)} classes")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise KD3Error(f"--names gives {twice!r} more than once")
    run_folder = RunFolder(folder.parent)
    of_run = folder == run_folder.student and run_folder.summary.is_file()
    if not of_run:
        _name(folder, names)
        return Classes(folder, names, before)
    with exclusive(run_folder.lock, what=f"run {run_folder.path}", can_go_elsewhere=False):
        summary = read_summary(run_folder.path)
        _name(folder, names)
        if (run_folder.student_as_trained / DESCRIPTION).is_file():
            _name(run_folder.student_as_trained, names)
        write_json(run_folder.summary, {**summary, "classes": names})
    return Classes(folder, names, before)


def _name(folder: Path, names: list[str]) -> None:
    about = read_student_description(folder)
    about_run = about.get("about")
    if isinstance(about_run, dict) and "classes" in about_run:
        about_run["classes"] = names
    write_json(folder / DESCRIPTION, {**about, "classes": names})


def _names(given: str) -> list[str]:
    """Return the names that a description, a text file or the flag itself lists."""
    path = Path(given)
    if path.suffix.lower() in (".yaml", ".yml"):
        names = read_yaml(path, what="teacher description").get("classes")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise KD3Error(f"{path} lists no names of classes; they stand there as 'classes: [cat, dog, ...]'")
    elif path.is_file():
        try:
            names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as problem:
            raise KD3Error(f"{path} cannot be read as names, one a line: {problem}") from None
    else:
        names = [name.strip() for name in given.split(",") if name.strip()]
    return [class_name(name) for name in names]
