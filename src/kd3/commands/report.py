"""`kd3 report`: finished runs in, one HTML file out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kd3.commands.arguments import as_setting
from kd3.config.commands import ReportConfig
from kd3.config.records import places
from kd3.config.settings import build
from kd3.evaluation.cascade import answers_of_both, measured
from kd3.evaluation.labelled import LabelledImages, doubts, labelled_for, leak, pool_of_student
from kd3.evaluation.lost import Answers, Lost
from kd3.models.costs import Cost, costs
from kd3.models.load_teacher import load_teacher
from kd3.models.student import Student
from kd3.models.student_files import load_student
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool
from kd3.pool.checks import watched
from kd3.reports.lost import EXAMPLES, of_run
from kd3.reports.page import RunFindings, page
from kd3.reports.pool_section import pool_section
from kd3.reports.run_records import RunRecords, read_run, verdict
from kd3.runtime import console
from kd3.runtime.compute import Compute, resolve
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import write_text
from kd3.runtime.run_folder import find, processor
from kd3.sources.trust import with_permissions
from kd3.training.run_logger import split_of

NAME = "report.html"


@dataclass(frozen=True)
class Report:
    """A report that was written."""

    path: Path
    verdicts: dict[str, list[str]]  # by run: the sentence and its caveats

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {"report": str(self.path), "verdicts": self.verdicts}

    def __str__(self) -> str:
        lines = []
        for name, (sentence, *notes) in self.verdicts.items():
            lines += [f"{name}: {sentence}", *(f"  {note}" for note in notes)]
        return "\n".join([*lines, f"written: {self.path} ({self.path.stat().st_size / 1e6:.1f} MB)"])


@console.quietable
def report(runs: str | Path | Sequence[str | Path], **settings: Any) -> Report:
    """Write one HTML file on a finished run, or on several side by side, and return its path.

    `settings` are `quiet=True` and those of `kd3 report --help`: out, teacher, pool, data, images, latency, trust_code,
    device.

    Args:
        runs: run folders.

    Raises:
        KD3Error: a folder is no finished run, or the file cannot be written.
    """
    given = runs if isinstance(runs, (list, tuple)) else [runs]
    listed = [as_setting(run, what="kd3.report: runs", allowed="run folders") for run in given]
    return run(build(ReportConfig, {"runs": listed, **settings}, where="kd3.report"))


@with_permissions
def run(config: ReportConfig) -> Report:
    """Run the command line's settings."""
    records = [read_run(path) for path in config.runs]
    out = Path(config.out) if config.out else records[0].folder.path / NAME
    if out.is_dir():
        raise KD3Error(f"--out {out} is a folder; give the name of a file")
    found = [_findings(one, config, alone=len(records) == 1) for one in records]
    try:
        write_text(out, page(found))
    except OSError as problem:
        raise KD3Error(f"{out} cannot be written: {problem.strerror or problem}") from None
    judged = [verdict(one) for one in records]
    return Report(
        out,
        {
            str(one.folder.path): [one_verdict.sentence, *one_verdict.notes]
            for one, one_verdict in zip(records, judged, strict=True)
        },
    )


def _findings(records: RunRecords, config: ReportConfig, *, alone: bool) -> RunFindings:
    missing: list[str] = []
    student = _or_missing(lambda: _student(records, config), "its student", missing)
    teacher = _or_missing(lambda: _teacher(records, config), "its teacher", missing)
    if student is None:
        return RunFindings(records, missing=missing)
    console.info(f"{records.name}: measures teacher and student")
    found = _costs(teacher, student, timed=config.latency)
    timing = f"Times on one thread of {processor()}, float32, in PyTorch; those of exported files are in their card."
    lost = None
    if config.data is not None and teacher is not None:
        lost = _lost(student, teacher, config)
    section = cascade = None
    kept = of_run(records.folder, student.cascade)
    if alone and config.images and teacher is not None:
        pool = _or_missing(lambda: _pool(records, config, student.input_size), "its pool", missing)
        if pool is not None:
            console.info(f"{records.name}: runs both networks on images of the pool")
            compute = resolve(config.device, "auto")
            with watched(pool):
                section = pool_section(records, teacher, student, pool, compute, images=config.images)
                if kept is None:
                    cascade = _held_out(records, student, teacher, pool, compute, images=config.images)
    return RunFindings(records, found.get("teacher"), found["student"], timing, section, lost, kept or cascade, missing)


def _costs(teacher: Teacher | None, student: Student, *, timed: bool) -> dict[str, Cost]:
    networks = {"student": student} if teacher is None else {"teacher": teacher, "student": student}
    side = student.input_size
    noise = torch.randint(0, 256, (1, 3, side, side), generator=torch.Generator().manual_seed(0))
    return costs(networks, student.normalise(noise.to(torch.uint8)), timed=timed)


def _lost(student: Student, teacher: Teacher, config: ReportConfig) -> tuple[Lost, LabelledImages, list[str]]:
    """Return the comparison, its data, and doubts in sentences."""
    assert config.data is not None
    data = labelled_for(student, config.data)
    compute = resolve(config.device, "32")
    answers = Answers(student)
    compute.place(student)
    compute.place(teacher)
    tally = data.tally(student, student.normalise, compute, teacher=teacher, answers=answers, title="labelled images")
    notes = doubts(tally.confusion.numpy(), data.matching)
    pool = pool_of_student(config.runs[0])
    if pool is not None:
        with watched(pool):
            leaked = leak(pool, data).warning
        notes += [leaked] if leaked else []
    for note in notes:
        console.warn(note)
    return answers.lost(student.classes, examples=EXAMPLES), data, notes  # consistent class names in the report


def _held_out(
    records: RunRecords, student: Student, teacher: Teacher, pool: ImagePool, compute: Compute, *, images: int
) -> dict[str, Any]:
    """Return the results of `kd3 cascade` on held-out images; nothing is chosen or stored."""
    held_out = split_of(records.folder, pool).holdout[:images]
    pixels = torch.from_numpy(pool.read(held_out))
    logits, answers = answers_of_both(student, teacher, pixels, compute)
    return {**measured(logits, answers), "of": "held out", "where": Path(str(pool.path)).name}


def _or_missing(load: Any, what: str, missing: list[str]) -> Any:
    """Return the loaded object; on failure record the reason and return None."""
    try:
        return load()
    except KD3Error as problem:
        missing.append(f"Not shown, since {what} cannot be had: {problem}")
        return None


def _student(records: RunRecords, config: ReportConfig) -> Student:
    return load_student(records.folder.path, trust_code=config.trust_code)


def _teacher(records: RunRecords, config: ReportConfig) -> Teacher:
    named = config.teacher or find(records.folder.path, "teacher", str(records.summary["teacher"]))
    # The user's location takes precedence over the run's.
    teacher = load_teacher(named, trust_code=config.trust_code or (None if config.teacher else False))
    if teacher.input_size is None and records.input_size is not None:
        teacher.fit_to(records.input_size)
    if teacher.fingerprint() != records.origin.get("teacher"):
        raise KD3Error(f"{named} is not the teacher that the run had")
    if teacher.input_size != records.input_size:
        raise KD3Error(
            f"{named} says that the teacher takes images of {teacher.input_size} pixels, but its student takes "
            f"{records.input_size}"
        )
    order = places(records.classes, teacher.classes, whose="the student", other="the teacher")
    if order != list(range(len(order))):
        raise KD3Error(
            f"its description lists the classes in another order than the student has them, of the same weights; "
            f"kd3 classes {records.folder.path} --names DESCRIPTION gives the student these"
        )
    teacher.class_names = records.classes  # consistent class names in the report
    return teacher


def _pool(records: RunRecords, config: ReportConfig, size: int) -> ImagePool:
    pool = ImagePool.open(config.pool or find(records.folder.path, "pool", str(records.summary["pool"])))
    if pool.content_hash != records.origin.get("pool"):
        raise KD3Error(f"{pool.path} is not the pool that the run learned from")
    return pool.at(size)
