"""`kd3 evaluate`: metrics of a model on labelled images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kd3.commands.arguments import MODEL, TEACHER, as_setting, if_live, optional_setting
from kd3.config.commands import EvaluateConfig
from kd3.config.records import nameless, places
from kd3.config.settings import build
from kd3.evaluation.accuracy import Interval, Tally, share
from kd3.evaluation.labelled import LabelledImages, Leak, doubts, leak, pool_of_student
from kd3.evaluation.lost import Answers, Lost, cascade_lines, class_lines
from kd3.models.load_teacher import load_teacher
from kd3.models.student import Student
from kd3.models.student_files import load_classifier
from kd3.models.teacher import Teacher
from kd3.pool.checks import watched
from kd3.reports.lost import EXAMPLES, write_page
from kd3.runtime import console
from kd3.runtime.compute import Compute, resolve
from kd3.runtime.errors import KD3Error
from kd3.runtime.text import aligned, one_line
from kd3.sources.class_matching import Matching
from kd3.sources.files import shown
from kd3.sources.record import counted
from kd3.sources.trust import with_permissions


@dataclass(frozen=True)
class Evaluation:
    """Figures of a model on labelled images, all in percent."""

    model: str
    data: str
    images: int
    top1: float
    top5: float
    calibration_error: float
    agreement: float | None  # with the teacher, on these images
    teacher_top1: float | None
    difference: float | None
    top1_interval: Interval
    lost: Lost | None
    per_class: dict[str, float | None]
    matching: Matching  # of labels to classes
    split: str  # of the data, if they have several; otherwise empty
    doubts: list[str]  # doubts about the labels
    skipped: dict[str, int]  # unusable files, by reason
    compute: str
    leak: dict[str, Any] | None  # images shared with the student's pool; None if unknown
    page: Path | None  # written by --out

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {
            **self.__dict__,
            "top1_interval": asdict(self.top1_interval),
            "lost": None if self.lost is None else self.lost.to_dict(),
            "page": None if self.page is None else str(self.page),
            "matching": self.matching.to_dict(),
        }

    def __str__(self) -> str:
        lines = [one_line(f"{self.model} on {self.images:,} images of {self.data} ({self.compute})")]
        if self.split:
            lines.append(f"the {self.split} split; the others are left out: name a file to measure another")
        lines += aligned(self._rows())
        lines += self.matching.lines()
        if self.lost is not None:
            lines += class_lines(self.lost)
            lines += cascade_lines(self.lost)
        else:
            lines.append("per class")
            lines += aligned(
                [
                    [one_line(name), f"{value:6.2f}%" if value is not None else "no images"]
                    for name, value in self.per_class.items()
                ]
            )
        if self.leak is not None:
            count = len({pair["test_key"] for pair in self.leak["pairs"]})
            lines.append(
                f"of these images in the student's pool: {count:,}" if count else "none is in the student's pool"
            )
        if self.skipped:
            lines.append(f"left out: {counted(self.skipped)}")
        if self.page is not None:
            lines.append(f"written: {self.page}")
        return "\n".join(lines)

    def _rows(self) -> list[list[str]]:
        """Return the figures of all images, those with an interval at 95% confidence."""
        rows = [["top-1", f"{self.top1:.2f}%", _between(self.top1_interval)]]
        if len(self.per_class) > 5:
            rows.append(["top-5", f"{self.top5:.2f}%", ""])
        if self.agreement is not None:
            rows.append(["agreement with the teacher", f"{self.agreement:.2f}%", ""])
        if self.lost is not None:
            total = self.lost.total
            rows.append(["teacher's top-1", f"{self.teacher_top1:.2f}%", _between(total.teacher)])
            rows.append(["difference", f"{self.difference:+.2f} points", _between(total.difference, sign="+")])
            for name, error in self.lost.calibration_error.items():
                rows.append([f"calibration error, {name}", f"{error:.2f}%", ""])
        else:
            rows.append(["calibration error", f"{self.calibration_error:.2f}%", ""])
        return rows


@console.quietable
def evaluate(
    model: str | Path | Teacher | Student,
    data: str | Path,
    *,
    teacher: str | Path | Teacher | None = None,
    **settings: Any,
) -> Evaluation:
    """Measure a model on labelled images.

    `settings` are `quiet=True` and those of `kd3 evaluate --help`: batch_size, device, precision, leak_check, workers,
    out, trust_code.

    Args:
        model: run folder, student folder or teacher description, or a live model of either kind.
        data: one folder of images per class, or data that carry labels (docs/labels.md), in files or archives.
        teacher: adds its accuracy, the difference and the agreement; classes are compared by name.

    Raises:
        KD3Error: model or data are missing, or do not belong together.
    """
    values = {
        "model": as_setting(model, what="kd3.evaluate: model", allowed=MODEL, live=(Teacher, Student)),
        "data": as_setting(data, what="kd3.evaluate: data", allowed="a path"),
        "teacher": optional_setting(teacher, what="kd3.evaluate: teacher", allowed=TEACHER, live=(Teacher,)),
    }
    config = build(EvaluateConfig, {**values, **settings}, where="kd3.evaluate")
    return run(config, if_live(model, Teacher) or if_live(model, Student), if_live(teacher, Teacher))


@with_permissions
def run(config: EvaluateConfig, model: Teacher | Student | None = None, teacher: Teacher | None = None) -> Evaluation:
    """Measure the model that the settings name, or a live one."""
    compute = resolve(config.device, config.precision)
    model = model or load_classifier(config.model, trust_code=config.trust_code)
    order: list[int] | None = None
    if config.teacher is not None:
        teacher = teacher or load_teacher(config.teacher, trust_code=config.trust_code or None)
    if model.is_nameless and (teacher is None or teacher.is_nameless):
        console.info(nameless(model.classes))
    if teacher is not None:
        if teacher.input_size is None and model.input_size is not None:
            teacher.fit_to(model.input_size)
        order = places(model.classes, teacher.classes, whose="the model", other="the teacher")
        if teacher.input_size != model.input_size:
            raise KD3Error(
                f"the model takes images of {model.input_size} pixels but the teacher of {teacher.input_size}; "
                f"they cannot be compared on the same images"
            )
        teacher = teacher.seeing(model.preparation)
        compute.place(teacher)
    data = LabelledImages(
        config.data,
        preparation=model.preparation,
        class_names=model.classes,
        workers=config.workers,
    )
    compute.place(model)
    answers = None
    if teacher is not None:
        answers = Answers(model, of_this_teacher=_same_teacher(model, teacher))
    tally = data.tally(
        model,
        model.normalise,
        compute,
        teacher=teacher,
        teacher_order=order,
        answers=answers,
        size=config.batch_size,
        title=f"evaluate {config.model}",
    )
    against = doubts(tally.confusion.numpy(), data.matching)
    for words in against:
        console.warn(words)
    found = _leak(config, data)
    lost = None if answers is None else answers.lost(data.names, examples=EXAMPLES if config.out else 0)
    out = None
    if config.out is not None and lost is not None:
        notes = [*against, *([found.warning] if found is not None and found.warning else [])]
        out = write_page(Path(config.out), lost, data, notes, model=config.model, teacher=config.teacher or "")
    return _figures(config, data, tally, compute, found, lost, out, against)


def _same_teacher(model: Teacher | Student, teacher: Teacher) -> bool:
    """Return whether a student's thresholds, if any, are for this teacher."""
    cascade = model.cascade if isinstance(model, Student) else None
    if cascade is None or cascade.get("teacher") == teacher.fingerprint():
        return True
    console.info("the cascade of this student is of another teacher; what it reaches is not shown")
    return False


def _leak(config: EvaluateConfig, data: LabelledImages) -> Leak | None:
    pool = pool_of_student(config.model) if config.leak_check else None
    if pool is None:
        return None
    if pool.preparation.fit != data.preparation.fit:
        console.warn(
            f"the student's pool {pool.path} was made by --fit {pool.preparation.fit}, but the student gets "
            f"pictures by {data.preparation.fit}; an earlier kd3 wrote its config.json: add "
            f'"preparation": {{"fit": "{pool.preparation.fit}"}} there'
        )
    try:
        with watched(pool):
            found = leak(pool, data)
    except KD3Error as problem:  # the figures do not depend on the pool
        console.warn(f"it is unknown whether the student trained on these images: {problem}")
        return None
    if found.warning:
        console.warn(found.warning)
    return found


def _figures(
    config: EvaluateConfig,
    data: LabelledImages,
    tally: Tally,
    compute: Compute,
    found: Leak | None,
    lost: Lost | None,
    out: Path | None,
    against: list[str],
) -> Evaluation:
    teachers = tally.teacher_top1_percent
    return Evaluation(
        model=config.model,
        data=shown(config.data),
        images=tally.count,
        top1=tally.top1_percent,
        top5=tally.top5_percent,
        calibration_error=tally.calibration_error_percent,
        agreement=tally.agreement_percent,
        teacher_top1=teachers,
        difference=None if teachers is None else tally.top1_percent - teachers,
        top1_interval=share(int(tally.confusion.diag().sum()), tally.count),
        lost=lost,
        per_class=dict(zip(data.names, tally.per_class_percent(), strict=True)),
        matching=data.matching,
        split=data.split,
        doubts=against,
        skipped=dict(data.skipped),
        compute=str(compute),
        leak=None if found is None else found.to_dict(),
        page=out,
    )


def _between(interval: Interval, sign: str = "") -> str:
    return f"({interval.low:{sign}.2f} to {interval.high:{sign}.2f})"
