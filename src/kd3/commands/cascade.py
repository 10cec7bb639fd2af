"""`kd3 cascade`: a finished run in, the threshold below which its student asks the teacher out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd3 import console
from kd3.class_names import places
from kd3.commands.finished_run import check_finished, check_identity, pool_of, split_of, teacher_of
from kd3.compute import Compute, resolve
from kd3.config.commands import CASCADE_IMAGES, CascadeConfig
from kd3.config.settings import build
from kd3.errors import KD3Error
from kd3.measure.calibration import Reliability, fit_temperature
from kd3.measure.cascade import AGREEMENTS, Cascade, Threshold, images_needed, margins
from kd3.models.student import Student
from kd3.models.student_files import load_student, save_cascade
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool
from kd3.pool.watch import watched
from kd3.recall.images import ChosenImages, known_images, of_pool, read_images
from kd3.runs.cascade import in_words, thresholds_in_words
from kd3.runs.folder import RunFolder
from kd3.storage.atomic import write_json
from kd3.storage.full_disk import full_disk_told
from kd3.storage.lock import exclusive

BATCH = 256


@dataclass(frozen=True)
class Found:
    """When a run's student is to ask its teacher."""

    folder: Path
    record: dict[str, Any]  # as it lies in the student's description
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
        lines = [str(self.folder), *thresholds_in_words(self.record), *in_words(self.record)]
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
    """Find the margin below which a finished student is to ask its teacher, and keep it with the student.

    `settings` are `quiet=True` and those of `kd3 cascade --help`: agreement, confidence, count, keep_out, seed, device,
    workers, trust_code.

    Args:
        run: folder of a finished run.
        deployment: unlabelled images from where the student will work; None: those that the run held out.
        teacher: the teacher, where it is no longer where the run found it, or was a live one.
        pool: the same of the pool.
        module: the untrained backbone, where the student was distilled from a live module.

    Raises:
        KD3Error: the run is not finished, or the agreement cannot be promised from these images; the run is then as
            it was.
    """
    values: dict[str, Any] = {"run": str(run), **settings}
    values |= {"deployment": None if deployment is None else str(deployment)}
    values |= {"teacher": teacher.name if isinstance(teacher, Teacher) else None if teacher is None else str(teacher)}
    values |= {"pool": "live:memory" if isinstance(pool, ImagePool) else None if pool is None else str(pool)}
    return _cascade(
        build(CascadeConfig, values, where="kd3.cascade"),
        module=module,
        teacher=teacher if isinstance(teacher, Teacher) else None,
        pool=pool if isinstance(pool, ImagePool) else None,
    )


def run(config: CascadeConfig) -> Found:
    """Run the command line's settings."""
    return _cascade(config)


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
        full_disk_told(folder.path, kept="the student is as it was"),
        exclusive(folder.lock, what=f"run {folder.path}"),
    ):
        student = load_student(folder.path, module=module, trust_code=config.trust_code)
        teacher = teacher or teacher_of(folder, given=config.teacher, trust_code=config.trust_code)
        if teacher.input_size is None:
            teacher.fit_to(student.input_size)
        check_identity(folder, "teacher", teacher.fingerprint())
        chosen = _images(config, folder, student, pool)
        logits, answers = answers_of_both(student, teacher, chosen.images, resolve(config.device, "32"))
        found = _found(config, folder, teacher, chosen, logits, answers)
        found = replace(found, record=save_cascade(student, folder.student, found.record))
        write_json(folder.cascade, {name: value for name, value in found.to_dict().items() if name != "run"})
    return found


def _images(config: CascadeConfig, folder: RunFolder, student: Student, pool: ImagePool | None) -> ChosenImages:
    """Return images that the student did not learn from."""
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
    held_out = split_of(folder, pool).holdout
    with watched(pool):
        return of_pool(pool, held_out, count=config.count or len(held_out), seed=config.seed, known=known, use=use)


def answers_of_both(student: Student, teacher: Teacher, images: Tensor, compute: Compute) -> tuple[Tensor, Tensor]:
    """Return a student's logits and its teacher's classes, in the student's order: uint8 (N, 3, S, S) -> (N, K), (N,).

    Raises:
        KD3Error: they do not have the same classes, or take images of other sizes.
    """
    order = places(student.classes, teacher.classes, whose="the student", other="the teacher")
    if teacher.input_size != student.input_size:
        raise KD3Error(
            f"the teacher takes images of {teacher.input_size} pixels but the student of {student.input_size}"
        )
    teacher = teacher.seeing(student.preparation)
    compute.place(student).eval()
    compute.place(teacher)
    own: list[Tensor] = []
    theirs: list[Tensor] = []
    with torch.inference_mode(), console.progress("student and teacher", len(images), "images") as bar:
        for part in images.split(BATCH):
            batch = part.to(compute.device).contiguous(memory_format=torch.channels_last)
            own.append(student(student.normalise(batch)).double().cpu())
            theirs.append(teacher(teacher.normalise(batch))[:, order].argmax(dim=1).cpu())
            bar.advance(len(part))
    return torch.cat(own), torch.cat(theirs)


def _found(
    config: CascadeConfig,
    folder: RunFolder,
    teacher: Teacher,
    chosen: ChosenImages,
    logits: Tensor,
    answers: Tensor,
) -> Found:
    cascaded = Cascade(margins(logits), logits.argmax(dim=1) == answers)
    tried = [cascaded.threshold(agreement, config.confidence) for agreement in sorted({*AGREEMENTS, config.agreement})]
    taken = next(one for one in tried if one.agreement == config.agreement)
    if taken.margin is None:
        raise _not_to_be_had(config, folder, taken, chosen)
    temperature = fit_temperature(logits, answers)
    scales = {"as trained": 1.0, "scaled": temperature}
    bins = {name: Reliability.of(logits, answers, scale) for name, scale in scales.items()}
    record = {
        "teacher": teacher.fingerprint(),
        "temperature": round(temperature, 4),
        "threshold": taken.margin,
        "agreement": config.agreement,
        "confidence": config.confidence,
        "escalated": taken.escalated,
        "images": cascaded.count,
        "of": "deployment" if config.deployment is not None else "held out",
        "where": Path(chosen.where).name,
        "kept_out": chosen.kept_out,
        "agreement_alone": cascaded.at(0.0)[1],
        "calibration_error": {name: round(one.error_percent, 2) for name, one in bins.items()},
        "thresholds": [asdict(one) for one in tried],
    }
    points = [asdict(one) for one in cascaded.curve(config.confidence)]
    curve = [{name: round(value, 3) for name, value in point.items()} for point in points]
    return Found(folder.path, record, curve, {name: [asdict(one) for one in bins[name].bins()] for name in bins})


def _not_to_be_had(config: CascadeConfig, folder: RunFolder, taken: Threshold, chosen: ChosenImages) -> KD3Error:
    count, asked = len(chosen.images), f"an agreement of {config.agreement:g} % at {config.confidence:g} % confidence"
    needed = images_needed(config.agreement, config.confidence)
    if count < needed:
        held = "--deployment gives" if config.deployment is not None else f"the run {folder.path} held out"
        more = "more images" if config.deployment is not None else "images of yours by --deployment"
        return KD3Error(
            f"{asked} needs at least {needed:,} images that the student did not learn from, but {held} {count:,}: give "
            f"{more}, or lower --agreement or --confidence"
        )
    return KD3Error(
        f"{asked} cannot be promised: of {count:,} images {taken.problem}, so that every image would have to go to the "
        f"teacher; lower --agreement"
    )
