"""`kd3 cascade`: from a finished run to the threshold below which its student asks the teacher."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from kd3.commands.arguments import check_finished, check_identity, checked_teacher, if_live, pool_of, run_settings
from kd3.config.commands import CASCADE_IMAGES, CascadeConfig
from kd3.config.settings import build
from kd3.evaluation.cascade import AGREEMENTS, answers_of_both, images_needed, measured
from kd3.inheritance.recalled import ChosenImages, known_images, of_pool, read_images
from kd3.models.student import Student
from kd3.models.student_files import load_student, save_cascade
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool
from kd3.pool.checks import watched
from kd3.runtime import console
from kd3.runtime.compute import resolve
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import exclusive, full_disk_as_error, write_json
from kd3.runtime.run_folder import RunFolder
from kd3.runtime.run_summary import cascade_in_words, thresholds_in_words
from kd3.sources.trust import with_permissions
from kd3.training.run_logger import split_of


@dataclass(frozen=True)
class Found:
    """Threshold below which a run's student asks its teacher."""

    folder: Path
    record: dict[str, Any]  # as in the student's description
    curve: list[dict[str, float]]
    reliability: dict[str, list[dict[str, float]]]  # by the teacher's answers: "as trained", "scaled"

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {
            "run": str(self.folder),
            **self.record,
            "curve": self.curve,
            "reliability": self.reliability,
        }

    def __str__(self) -> str:
        lines = [str(self.folder), *thresholds_in_words(self.record), *cascade_in_words(self.record)]
        return "\n".join([lines[0], *(f"  {line}" for line in lines[1:])])


@console.quietable
def cascade(
    run: str | Path,
    *,
    deployment: str | Path | None = None,
    teacher: str | Path | Teacher | None = None,
    pool: str | Path | ImagePool | None = None,
    module: nn.Module | None = None,
    **settings: Any,
) -> Found:
    """Find the margin below which a finished student should ask its teacher, and store it with the student.

    `settings` are `quiet=True` and those of `kd3 cascade --help`: agreement, confidence, count, keep_out, seed, device,
    workers, trust_code.

    Args:
        run: folder of a finished run.
        deployment: unlabelled images of the deployment; None: the run's held-out images.
        teacher: the teacher, if it has moved or was a live one.
        pool: the same of the pool.
        module: the untrained backbone, if the student was distilled from a live module.

    Raises:
        KD3Error: the run is not finished, or these images cannot guarantee the agreement; the run is then unchanged.
    """
    values = run_settings("kd3.cascade", run, teacher=teacher, pool=pool, deployment=deployment)
    config = build(CascadeConfig, {**values, **settings}, where="kd3.cascade")
    return _cascade(config, module=module, teacher=if_live(teacher, Teacher), pool=if_live(pool, ImagePool))


def run(config: CascadeConfig) -> Found:
    """Run the command line's settings."""
    return _cascade(config)


@with_permissions
def _cascade(
    config: CascadeConfig,
    *,
    module: nn.Module | None = None,
    teacher: Teacher | None = None,
    pool: ImagePool | None = None,
) -> Found:
    folder = RunFolder(Path(config.run))
    check_finished(folder)
    with (
        full_disk_as_error(folder.path, kept="the student is as it was"),
        exclusive(folder.lock, what=f"run {folder.path}", can_go_elsewhere=False),
    ):
        student = load_student(folder.path, module=module, trust_code=config.trust_code)
        teacher = checked_teacher(folder, student, live=teacher, given=config.teacher, trust_code=config.trust_code)
        chosen = _images(config, folder, student, pool)
        found = _found(config, folder, student, teacher, chosen)
        found = replace(found, record=save_cascade(student, folder.student, found.record))
        write_json(folder.cascade, {name: value for name, value in found.to_dict().items() if name != "run"})
    return found


def _images(config: CascadeConfig, folder: RunFolder, student: Student, pool: ImagePool | None) -> ChosenImages:
    """Return images on which the student was not trained."""
    known = known_images(config.keep_out, student.preparation, workers=config.workers)
    use = "compare student and teacher on"
    if config.deployment is not None:
        return read_images(
            config.deployment,
            student.preparation,
            limit=config.count or CASCADE_IMAGES,
            seed=config.seed,
            known=known,
            workers=config.workers,
            use=use,
        )
    pool = pool or pool_of(folder, given=config.pool, instead="--deployment")
    check_identity(folder, "pool", pool.content_hash)
    pool = pool.at(student.input_size)
    held_out = split_of(folder, pool).holdout
    with watched(pool):
        return of_pool(pool, held_out, count=config.count or len(held_out), seed=config.seed, known=known, use=use)


def _found(config: CascadeConfig, folder: RunFolder, student: Student, teacher: Teacher, chosen: ChosenImages) -> Found:
    logits, answers = answers_of_both(student, teacher, chosen.images, resolve(config.device, "32"))
    found = measured(logits, answers, confidence=config.confidence, agreements={*AGREEMENTS, config.agreement})
    taken = next(one for one in found["thresholds"] if one["agreement"] == config.agreement)
    if taken["margin"] is None:
        raise _not_to_be_had(config, folder, taken["problem"], len(chosen.images))
    curve, reliability = found.pop("curve"), found.pop("reliability")
    record = {
        "agreement": config.agreement,
        "threshold": taken["margin"],
        "escalated": taken["escalated"],
        **found,
        "of": "deployment" if config.deployment is not None else "held out",
        "where": Path(chosen.where).name,
        "kept_out": chosen.kept_out,
        "teacher": teacher.fingerprint(),
    }
    return Found(folder.path, record, curve, reliability)


def _not_to_be_had(config: CascadeConfig, folder: RunFolder, problem: str, count: int) -> KD3Error:
    asked = f"an agreement of {config.agreement:g}% at {config.confidence:g}% confidence"
    needed = images_needed(config.agreement, config.confidence)
    if count < needed:
        held = "--deployment gives" if config.deployment is not None else f"the run {folder.path} held out"
        more = "more images" if config.deployment is not None else "images of yours by --deployment"
        return KD3Error(
            f"{asked} needs at least {needed:,} images that the student did not learn from, but {held} {count:,}: give "
            f"{more}, or lower --agreement or --confidence"
        )
    return KD3Error(
        f"{asked} cannot be promised: on {count:,} images {problem}, so that every image would have to go to the "
        f"teacher; lower --agreement"
    )
