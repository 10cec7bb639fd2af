"""Results of an adaptation in a run folder: the adapted student, the one as trained, the record, a picture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from kd3.models.student import Student
from kd3.models.student_files import adaptation_of, save_adapted
from kd3.recall.adapt import Adaptation
from kd3.recall.picture import Pairs
from kd3.runs.adaptation import with_adaptation
from kd3.runs.folder import RunFolder
from kd3.storage.atomic import write_json
from kd3.storage.whole_folder import whole_folder


def as_trained(folder: RunFolder) -> Path:
    """Return the folder of the student as trained."""
    record = adaptation_of(folder.student)
    return folder.student_as_trained if record is not None and record["share"] > 0 else folder.student


def keep_adapted(folder: RunFolder, student: Student, adaptation: Adaptation, pairs: Pairs | None) -> None:
    """Install an adapted student in its run; the caller holds the run's lock.

    The student's weights file, which contains the record, is replaced last and atomically; until then the run is
    unchanged. The copies for people follow.
    """
    if adaptation.changed and as_trained(folder) == folder.student:
        shutil.rmtree(folder.student_as_trained, ignore_errors=True)  # of an interrupted adaptation
        with whole_folder(folder.student_as_trained, what="the student as trained") as place:
            shutil.copytree(folder.student, place, dirs_exist_ok=True)
    record = adaptation.record()
    save_adapted(student, folder.student, record)
    if not adaptation.changed:
        shutil.rmtree(folder.student_as_trained, ignore_errors=True)
    write_json(folder.adaptation, record)
    if pairs is None:
        folder.recalled_picture.unlink(missing_ok=True)
    else:
        pairs.write(folder.recalled_picture)


def keep_in_summary(folder: RunFolder, record: dict[str, Any]) -> None:
    """Write a new adaptation into a finished run's summary."""
    summary = json.loads(folder.summary.read_text(encoding="utf-8"))
    write_json(folder.summary, with_adaptation(summary, record))
