"""`kd3 adapt`: re-estimate the batch norm statistics of a finished run's student."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from kd3.commands.arguments import check_finished, check_identity, checked_teacher, if_live, pool_of, run_settings
from kd3.config.commands import GIVEN_IMAGES, RECALLED_IMAGES, AdaptConfig
from kd3.config.settings import build
from kd3.inheritance.adapt import Adaptation, adapt_by_recall, adapt_to_given
from kd3.inheritance.at_end import as_trained, keep_adapted, keep_in_summary
from kd3.inheritance.recalled import Pairs, known_images, of_pool, read_images
from kd3.models.batch_norms import remembering_norms
from kd3.models.student import Student
from kd3.models.student_files import load_student
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool
from kd3.pool.checks import watched
from kd3.runtime import console
from kd3.runtime.compute import Compute, resolve
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import exclusive, full_disk_as_error
from kd3.runtime.run_folder import RunFolder
from kd3.sources.trust import with_permissions
from kd3.training.run_logger import trained_on


@dataclass(frozen=True)
class Adapted:
    """A run whose student was adapted."""

    folder: Path
    adaptation: Adaptation
    module: nn.Module | None = None  # the live backbone, if the student was distilled from one
    trust_code: bool = False

    @property
    def student(self) -> Student:
        """The adapted student, loaded from the run's folder."""
        return load_student(self.folder, module=self.module, trust_code=self.trust_code)

    def to_dict(self) -> dict[str, Any]:
        """Return the record, for JSON."""
        return {"run": str(self.folder), **self.adaptation.record()}

    def __str__(self) -> str:
        lines = [f"{self.folder}", *(f"  {line}" for line in str(self.adaptation).splitlines())]
        if self.adaptation.changed:
            lines.append(f"  as trained   {RunFolder(self.folder).student_as_trained}")
        return "\n".join(lines)


@console.quietable
def adapt(
    run: str | Path,
    *,
    images: str | Path | None = None,
    teacher: str | Path | Teacher | None = None,
    pool: str | Path | ImagePool | None = None,
    module: nn.Module | None = None,
    **settings: Any,
) -> Adapted:
    """Re-estimate a finished student's batch norm statistics on images like the lost ones, and store it in its run.

    `settings` are `quiet=True` and those of `kd3 adapt --help`: count, keep_out, seed, device, workers.

    Args:
        run: folder of a finished run.
        images: unlabelled images of the deployment; None: images recalled from the teacher.
        teacher: the teacher, if it has moved or was a live one.
        pool: the same of the pool.
        module: the untrained backbone, if the student was distilled from a live module.

    Raises:
        KD3Error: the run is not finished, too few images can be used, or a network keeps no batch-norm statistics;
            the run is then unchanged.
    """
    values = run_settings("kd3.adapt", run, teacher=teacher, pool=pool, images=images)
    config = build(AdaptConfig, {**values, **settings}, where="kd3.adapt")
    return _adapt(config, module=module, teacher=if_live(teacher, Teacher), pool=if_live(pool, ImagePool))


def run(config: AdaptConfig) -> Adapted:
    """Run the command line's settings."""
    return _adapt(config)


@with_permissions
def _adapt(
    config: AdaptConfig,
    *,
    module: nn.Module | None = None,
    teacher: Teacher | None = None,
    pool: ImagePool | None = None,
) -> Adapted:
    folder = RunFolder(Path(config.run))
    check_finished(folder)
    with (
        full_disk_as_error(folder.path, kept="the student is as it was"),
        exclusive(folder.lock, what=f"run {folder.path}", can_go_elsewhere=False),
    ):
        student = load_student(as_trained(folder), module=module, trust_code=config.trust_code)
        if not remembering_norms(student):
            raise KD3Error(f"the student of {folder.path} keeps no batch-norm statistics; there is nothing to adapt")
        teacher = checked_teacher(folder, student, live=teacher, given=config.teacher, trust_code=config.trust_code)
        adaptation, pairs = _adapted(config, folder, student, teacher, pool, resolve(config.device, "32"))
        keep_adapted(folder, student, adaptation, pairs)
        keep_in_summary(folder, adaptation.record())
    return Adapted(folder.path, adaptation, module, config.trust_code)


def _adapted(
    config: AdaptConfig,
    folder: RunFolder,
    student: Student,
    teacher: Teacher,
    pool: ImagePool | None,
    compute: Compute,
) -> tuple[Adaptation, Pairs | None]:
    known = known_images(config.keep_out, student.preparation, workers=config.workers)
    if config.images is not None:
        given = read_images(
            config.images,
            student.preparation,
            limit=config.count or GIVEN_IMAGES,
            seed=config.seed,
            known=known,
            workers=config.workers,
        )
        return adapt_to_given(student, teacher, given, compute)
    if not remembering_norms(teacher.module):
        raise KD3Error(
            f"teacher {teacher.name} keeps no batch-norm statistics, so it has nothing to recall images from; give "
            f"images from where the student will work: --images"
        )
    pool = pool or pool_of(folder, given=config.pool, instead="--images")
    check_identity(folder, "pool", pool.content_hash)
    pool = pool.at(student.input_size)
    among = trained_on(folder, pool)
    with watched(pool):
        chosen = of_pool(pool, among, count=config.count or RECALLED_IMAGES, seed=config.seed, known=known)
        return adapt_by_recall(student, teacher, chosen, compute)
