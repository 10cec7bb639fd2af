"""`kd3 distill`: teacher and pool in, a run folder with a student out."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from kd3 import console
from kd3.commands.fitting import check_sizes, normalisation_on
from kd3.compute import Compute, resolve
from kd3.config.commands import DEFAULT_IMAGES, DistillConfig
from kd3.config.distill_layers import layered, resumed
from kd3.config.settings import to_yaml
from kd3.config.spread import spread
from kd3.errors import KD3Error
from kd3.measure.labelled import LabelledImages
from kd3.measure.leak import leak
from kd3.methods.base import Method, build_method
from kd3.models.arch import build_arch
from kd3.models.student import Student
from kd3.models.student_files import load_student, save_student
from kd3.models.teacher import Teacher, load_teacher
from kd3.pool import ImagePool
from kd3.runs.folder import RunFolder, read_summary
from kd3.runs.origin import origin
from kd3.runs.summary import describe
from kd3.storage.atomic import write_json
from kd3.storage.lock import exclusive
from kd3.tracking.trackers import Trackers, check_installed
from kd3.training.fit import Fit, FitResult
from kd3.training.fixed_views import check_fixed_views
from kd3.training.pool_batches import PoolBatches
from kd3.training.pool_split import PoolSplit, split_pool
from kd3.training.randomness import seed_for
from kd3.training.teacher_logits import teacher_logits

SAMPLE_IMAGES = 64


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    summary: dict[str, Any]
    module: nn.Module | None = None  # the live backbone, where the student was given as one

    @property
    def student(self) -> Student:
        """The student that the run kept, loaded from its folder."""
        return load_student(self.folder, module=self.module)

    @property
    def agreement(self) -> float:
        """Percent of held-out pool images on which student and teacher say the same class."""
        return float(self.summary["agreement"])

    def to_dict(self) -> dict[str, Any]:
        """Return the summary."""
        return self.summary

    def __str__(self) -> str:
        return describe(self.folder, self.summary)


def distill(
    teacher: str | Path | Teacher,
    student: str | nn.Module,
    pool: str | Path | ImagePool,
    out: str | Path,
    *,
    resume: bool = False,
    config: str | Path | None = None,
    preset: str | None = None,
    **settings: Any,
) -> Run:
    """Distil a teacher into a student and return the finished run.

    `settings` are those of `kd3 distill --help`, by the same names: `images="200k"`, `lr=0.05`,
    `method="kd"`, `seed=1`; a method's options under its name: `kd3={"threshold": 0.9}`.

    Args:
        teacher: a description file, or a live `Teacher`.
        student: an architecture (`kd3:resnet20`, `net.py:build`), or a live untrained module, of
            which a copy is trained.
        pool: folder made by `kd3.ingest`, or a live pool.
        out: folder of the run.
        resume: continue the interrupted run in `out`, with its own settings.
        config: file of settings to start from, as on the command line.
        preset: settings by name to start from.

    Raises:
        KD3Error: something in the input is wrong, and nothing has been written; or the training
            failed (a loss that is not finite), and its last checkpoint is kept.
        KeyboardInterrupt: interrupted; a checkpoint was written, `resume=True` continues.
    """
    where = "kd3.distill"
    names = {
        "teacher": f"live:{teacher.name}" if isinstance(teacher, Teacher) else str(teacher),
        "student": f"live:{type(student).__name__}" if isinstance(student, nn.Module) else student,
        "pool": str(pool.path or "live:memory") if isinstance(pool, ImagePool) else str(pool),
        "out": str(out),
    }
    given = spread(DistillConfig, settings)
    if resume:
        if config or preset:
            raise KD3Error("resume=True takes the settings from the run folder; leave config and preset out")
        resolved = resumed({**names, **given}, where=where)
    else:
        resolved = layered({**names, **given}, config=Path(config) if config else None, preset=preset, where=where)
    return _distill(
        resolved,
        resume=resume,
        teacher=teacher if isinstance(teacher, Teacher) else None,
        student=student if isinstance(student, nn.Module) else None,
        pool=pool if isinstance(pool, ImagePool) else None,
    )


def run(config: DistillConfig, *, resume: bool = False) -> Run:
    """Run the command line's settings."""
    return _distill(config, resume=resume)


def _distill(
    config: DistillConfig,
    *,
    resume: bool,
    teacher: Teacher | None = None,
    student: nn.Module | None = None,
    pool: ImagePool | None = None,
) -> Run:
    folder = RunFolder(Path(config.out))
    state = folder.state()
    if state == "finished":
        if not resume:
            raise KD3Error(f"{folder.path} holds a finished run; choose another --out")
        console.say(f"{folder.path} is finished; there is nothing to resume")
        return Run(folder.path, read_summary(folder.path), student)
    if state == "interrupted" and not resume:
        raise KD3Error(f"{folder.path} holds an interrupted run; add --resume to continue it, or choose another --out")

    check_installed(config.trackers)
    compute = resolve(config.device, config.precision)
    config = _resolved(config, compute)
    live_teacher, live_pool = teacher, pool
    teacher = teacher or load_teacher(config.teacher)
    pool = pool or ImagePool.open(config.pool)
    check_sizes(teacher, pool)
    if state == "absent" and (doubt := normalisation_on(teacher, pool, compute, _split(config, pool).train).warning):
        console.warn(doubt)
    if config.train.fold_batch_norms:
        teacher = teacher.folded()
    data = _labelled(config, teacher)
    if data is not None and state == "absent" and (leaked := leak(pool, data).warning):
        console.warn(leaked)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(config.seed, "initial weights"))
        method = _method(config, teacher, student, pool)
    labels = torch.from_numpy(pool.labels(teacher.classes)) if method.needs_labels else None
    check_fixed_views(config.train, pool)

    folder.make()
    with exclusive(folder.lock, what=f"run {folder.path}"):
        if folder.state() != state:
            raise KD3Error(f"another process has just begun a run in {folder.path}; choose another --out")
        identities = {"teacher": teacher.fingerprint(), "pool": pool.content_hash}
        if state == "absent":
            folder.begin(to_yaml(config), origin(**identities, compute=str(compute)))
        else:
            folder.check_origin(**identities, compute=str(compute))
        console.say(_announcement(config, teacher, method, pool, compute))
        batches = PoolBatches(pool, compute)
        tracked = ExitStack()

        def track(images: int) -> list[Trackers]:
            values = config.model_dump(mode="json")
            trackers = Trackers(config.trackers, folder.path, values, teacher.classes, images=images)
            tracked.callback(trackers.close)
            return [trackers]

        fit = Fit(
            method,
            batches=batches,
            split=_split(config, pool),
            teacher_logits=cache(lambda: teacher_logits(teacher, batches, compute)),
            settings=config.train,
            seed=config.seed,
            compute=compute,
            folder=folder,
            evaluate=(lambda trained: {"accuracy": data.accuracy(trained.student, compute)}) if data else None,
            labels=labels,
            listeners=track,
        )
        try:
            result = fit.run(resume=resume)
        except KeyboardInterrupt:
            live = isinstance(live_teacher, Teacher) or isinstance(student, nn.Module)
            live = live or (live_pool is not None and live_pool.path is None)
            again = "the same call and resume=True" if live else f"kd3 distill --resume --out {folder.path}"
            raise KeyboardInterrupt(
                f"interrupted after {fit.at.step:,} of {fit.total_steps:,} steps; continue with: {again}"
            ) from None
        finally:
            tracked.close()
        summary = _finish(config, folder, method, student, result, compute, pool)
    return Run(folder.path, summary, student)


def _resolved(config: DistillConfig, compute: Compute) -> DistillConfig:
    """Return the settings with nothing left to a default that may change or to the machine."""
    train = config.train
    if train.images is None and train.epochs is None:
        train = train.model_copy(update={"images": DEFAULT_IMAGES})
    update = {"train": train, "device": str(compute.device), "precision": compute.precision}
    return config.model_copy(update=update)


def _labelled(config: DistillConfig, teacher: Teacher) -> LabelledImages | None:
    if config.eval_data is None:
        return None
    assert teacher.input_size is not None
    return LabelledImages(
        config.eval_data,
        image_size=teacher.input_size,
        num_classes=teacher.num_classes,
        class_names=teacher.classes,
    )


def _split(config: DistillConfig, pool: ImagePool) -> PoolSplit:
    return split_pool(pool, config.train.holdout, share=config.train.share)


def _method(config: DistillConfig, teacher: Teacher, student: nn.Module | None, pool: ImagePool) -> Method:
    backbone = copy.deepcopy(student)
    if backbone is None:
        backbone = build_arch(
            config.student,
            num_classes=teacher.num_classes,
            arch_args=config.student_args,
            relative_to=Path(),
            input_size=teacher.input_size,
        )
    images = torch.from_numpy(pool.read(_split(config, pool).train[:SAMPLE_IMAGES]))
    # A live teacher may already be on a GPU.
    sample = teacher.normalise(images.to(teacher.normalise.scale.device))
    return build_method(
        config.method,
        config.method_options,
        teacher=teacher,
        backbone=backbone,
        backbone_name=config.student,
        sample=sample,
    )


def _announcement(config: DistillConfig, teacher: Teacher, method: Method, pool: ImagePool, compute: Compute) -> str:
    teacher_size = sum(p.numel() for p in teacher.parameters()) / 1e6
    student_size = sum(p.numel() for p in method.student.parameters()) / 1e6
    return (
        f"distil {teacher.name} ({teacher_size:.2f} M parameters) into {config.student} ({student_size:.2f} M) "
        f"with {config.method} on {len(pool):,} images; {compute}"
    )


def _finish(
    config: DistillConfig,
    folder: RunFolder,
    method: Method,
    live_student: nn.Module | None,
    result: FitResult,
    compute: Compute,
    pool: ImagePool,
) -> dict[str, Any]:
    """Keep the student of the best agreement, and write the summary last: it marks the end."""
    method.student.load_state_dict(load_file(folder.best))
    summary = {
        "method": config.method,
        "teacher": config.teacher,
        "student": config.student,
        "pool": config.pool,
        "pool_images": len(pool),
        "classes": method.student.classes,
        "agreement": result.best_agreement,
        "agreement_at_end": result.last_agreement,
        "best_step": result.best_step,
        "steps": result.steps,
        "images": result.images,
        "rounds": result.rounds,
        "seconds": round(result.seconds, 1),
        "images_per_second": round(result.images / max(result.seconds, 1e-9), 1),
        "compute": str(compute),
        "seed": config.seed,
    }
    arch = None if live_student is not None else config.student
    save_student(
        method.student.to("cpu").eval(),
        folder.student,
        arch=arch,
        arch_args=config.student_args,
        about=summary,
    )
    write_json(folder.summary, summary)
    return summary
