"""`kd3 select`: show the images that KD3 would select, with reasons. Nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from kd3.commands.arguments import POOL, TEACHER, as_setting, if_live, optional_setting
from kd3.config.pool_commands import SelectConfig
from kd3.config.settings import build
from kd3.evaluation.compatibility import check_student, fitted
from kd3.models.checkpoint import weights_hash
from kd3.models.load_teacher import load_teacher
from kd3.models.student import Student
from kd3.models.student_files import load_classifier
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool
from kd3.pool.checks import watched
from kd3.pool.listed import check_index
from kd3.reports.selection_decisions import (
    NAME,
    Decisions,
    check_same,
    decisions,
    describe,
    kept_positions,
    read_report,
    report,
    write_table,
)
from kd3.reports.selection_pictures import write_grids
from kd3.runtime import console
from kd3.runtime.compute import Compute, resolve
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import is_vacant, whole_folder, write_json
from kd3.scoring.batches import PoolBatches
from kd3.scoring.scan import LatestPredictions, PoolScan
from kd3.scoring.teacher_cache import teacher_logits
from kd3.selection import select_confident
from kd3.version import __version__


@dataclass(frozen=True)
class PoolSelection:
    """A finished selection."""

    folder: Path
    report: dict[str, Any]  # the contents of `selection.json`

    @property
    def positions(self) -> np.ndarray:
        """Positions of the kept images in the pool, (M,) int64, ascending: `pool.read(selection.positions)`."""
        return kept_positions(self.folder)

    def to_dict(self) -> dict[str, Any]:
        """Return the report and its path."""
        return {"folder": str(self.folder), **self.report}

    def __str__(self) -> str:
        return describe(self.folder, self.report)


@console.quietable
def select(
    teacher: str | Path | Teacher,
    pool: str | Path | ImagePool,
    out: str | Path,
    *,
    student: str | Path | Student | None = None,
    **settings: Any,
) -> PoolSelection:
    """Select images of a pool as KD3 does before a round of training, write the selection and return it.

    With z = alpha z_T + (1 - alpha) z_S an image is kept whose confidence exceeds the threshold of
    its class; alpha is `teacher_weight`, 1 without a student. `settings` are those of
    `kd3 select --help`: teacher_weight, threshold, at_least, images_per_grid, grid_classes, trust_code,
    device, precision. An existing selection with the same inputs and settings is returned.

    Args:
        teacher: a description file, or a live `Teacher`.
        pool: folder made by `kd3.ingest`, or a live pool (one in memory numbers its images).
        out: folder of the output, absent or empty.
        student: run folder, student folder, or a live `Student`, of the teacher's classes.

    Raises:
        KD3Error: something in the input is wrong; nothing is left behind but the teacher's logits
            beside the pool.
    """
    values = {
        "teacher": as_setting(teacher, what="kd3.select: teacher", allowed=TEACHER, live=(Teacher,)),
        "pool": as_setting(pool, what="kd3.select: pool", allowed=POOL, live=(ImagePool,)),
        "out": as_setting(out, what="kd3.select: out", allowed="a folder"),
        "student": optional_setting(
            student, what="kd3.select: student", allowed="a folder or a kd3.Student", live=(Student,)
        ),
    }
    config = build(SelectConfig, {**values, **settings}, where="kd3.select")
    return run(config, if_live(teacher, Teacher), if_live(pool, ImagePool), if_live(student, Student))


def run(
    config: SelectConfig,
    teacher: Teacher | None = None,
    pool: ImagePool | None = None,
    student: Student | None = None,
) -> PoolSelection:
    """Select with the teacher, pool and student that the settings name, or with live ones."""
    out = Path(config.out)
    before = None if is_vacant(out) else read_report(out)
    if before is None and not is_vacant(out):
        raise KD3Error(f"{out} is not empty and holds no selection; choose another --out")
    compute = resolve(config.device, config.precision)
    teacher = teacher or load_teacher(config.teacher, trust_code=config.trust_code or None)
    pool = pool or ImagePool.open(config.pool)
    check_index(pool)
    teacher, pool = fitted(teacher, pool)
    if config.student is not None:
        student = student or _student(config.student, trust_code=config.trust_code)
        check_student(student, teacher, pool, name=config.student)
    about = _about(config, teacher, student, pool, compute)
    if before is not None:
        check_same(out, before, about)
        console.info(f"{out} holds this selection; there is nothing to do")
        return PoolSelection(out, before)

    with whole_folder(out, what=f"selection {out}") as folder, watched(pool):
        found = _decisions(config, teacher, student, pool, compute)
        write_table(folder, found, pool, about)
        grids = write_grids(folder, found, pool, images=config.images_per_grid, classes=config.grid_classes)
        values = report(found, about, grids)
        write_json(folder / NAME, values)
    return PoolSelection(out, values)


def _student(path: str, *, trust_code: bool) -> Student:
    found = load_classifier(path, trust_code=trust_code)
    if not isinstance(found, Student):
        raise KD3Error(f"--student {path} is a teacher description; give a run folder or a student/ folder")
    return found


def _about(
    config: SelectConfig, teacher: Teacher, student: Student | None, pool: ImagePool, compute: Compute
) -> dict[str, Any]:
    """Return the inputs of a selection; equal settings and hashes make an equal one."""
    return {
        "kd3": __version__,
        "settings": {
            "teacher_weight": config.alpha,
            "threshold": config.threshold,
            "at_least": config.at_least,
            "images_per_grid": config.images_per_grid,
            "grid_classes": config.grid_classes,
            "device": compute.device.type,
            "precision": compute.precision,
        },
        "teacher": {"name": config.teacher, "fingerprint": teacher.fingerprint()},
        "student": student and {"name": config.student, "weights": weights_hash(student)},
        "pool": {"path": config.pool, "content_hash": pool.content_hash, **_resized(pool)},
        "compute": str(compute),
    }


def _resized(pool: ImagePool) -> dict[str, Any]:
    return {} if pool.stored is pool else {"image_size": pool.image_size}  # the teacher's, which may change


def _decisions(
    config: SelectConfig, teacher: Teacher, student: Student | None, pool: ImagePool, compute: Compute
) -> Decisions:
    """Select over the whole pool."""
    compute.place(teacher)
    if student is not None:
        compute.place(student)
    batches = PoolBatches(pool, compute)
    scan = PoolScan(
        student,
        batches,
        np.arange(len(pool)),
        cache(lambda: teacher_logits(teacher, batches, compute)),
        compute,
        LatestPredictions(len(pool), teacher.num_classes, compute.device),
        title="student scores the pool",
    )
    predictions = scan.predictions(config.alpha)
    selection = select_confident(
        predictions, threshold=config.threshold, at_least=config.at_least, teacher_logits=scan.teacher_logits
    )
    return decisions(predictions, selection, teacher.classes)
