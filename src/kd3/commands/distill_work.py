"""The work of one distillation, in one process or in several together."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from kd3.commands.distill_parts import SHRUNK, Job, Live, read_job
from kd3.config.distill import DistillConfig
from kd3.config.methods import METHODS
from kd3.config.settings import to_yaml
from kd3.config.training import TrainSettings
from kd3.evaluation.labelled import LabelledImages, doubts
from kd3.inheritance.at_end import adapt_student, keep_adapted
from kd3.inheritance.fitted_teacher import FittedTeacher, find_outliers, fit_teacher, typicality
from kd3.methods import Method
from kd3.models.costs import parameters_of
from kd3.models.load_teacher import runs_code
from kd3.models.student_files import load_student, save_student
from kd3.pool import ImagePool
from kd3.pool.checks import PATIENCE, DamagedPoolError, Watch, watched
from kd3.runtime import console
from kd3.runtime.compute import Compute, out_of_memory_as_error
from kd3.runtime.errors import FailedElsewhereError, KD3Error
from kd3.runtime.files import exclusive, full_disk_as_error, write_json
from kd3.runtime.run_folder import KEY, Listener, RunFolder, State, from_run, kept_accuracy, origin, read_metrics
from kd3.runtime.run_summary import with_adaptation
from kd3.scoring.batches import PoolBatches
from kd3.scoring.scan import CachedLogits, agreement, score
from kd3.scoring.teacher_cache import logits_of_part, teacher_logits
from kd3.sources.trust import shareable
from kd3.training.learner import can_be_recorded
from kd3.training.loop import Fit, FitResult
from kd3.training.run_logger import trained_on
from kd3.training.trackers import Trackers


def train(config: DistillConfig, compute: Compute, state: State, live: Live) -> dict[str, Any]:
    """Do the work and return the run's summary. Every rank makes the same checks; the first one writes.

    Raises:
        KD3Error: an input is wrong (nothing is written), or the training failed.
        KeyboardInterrupt: stopped, with a checkpoint.
    """
    folder, ranks = RunFolder(Path(config.out)), compute.ranks
    again = "the same call and resume=True" if live.again else folder.resume_command
    kept = f"the last checkpoint is whole: free some space and continue with: {again}"
    what = f"{config.student} from {config.teacher}"
    less = "use a smaller --batch-size, or --micro-batch where the student has no batch norms"
    with full_disk_as_error(folder.path, kept=kept), out_of_memory_as_error(what, less=less), ExitStack() as held:
        with ranks.failing_together():
            job = read_job(config, compute, state, live)
            if config.train.batch_size == "auto":
                config = config.model_copy(update={"train": job.train})  # a run's settings hold numbers
            if ranks.is_first:
                held.enter_context(_claimed(folder, state, config, compute, job))
        held.enter_context(out_of_memory_as_error(f"{what} in batches of {job.train.batch}", less=less))
        held.enter_context(compute.tuned(tf32=config.train.tf32, deterministic=config.train.deterministic))
        watch = held.enter_context(_watched(job.pool, folder)) if ranks.is_first else None
        console.info(_announcement(config, job, compute))
        batches, split = PoolBatches(job.pool, compute), job.split

        fitted = fit_teacher(
            job.teacher,
            batches,
            split.train,
            compute,
            how=config.teacher_statistics or "lost",
            blend=config.teacher_blend,
            kept=folder.teacher_statistics,
        )
        if config.teacher_statistics not in (None, "lost"):
            console.info(fitted.in_words())
        teacher = fitted.teacher.folded() if config.train.fold_batch_norms else fitted.teacher
        job.method.learn_from(teacher)

        def track(images: int) -> list[Listener]:
            values = config.model_dump(mode="json")
            trackers = Trackers(config.trackers, folder.path, shareable(values), job.teacher.classes, images=images)
            held.callback(trackers.close)
            return [trackers, *([lambda event, values: watch.check()] if watch else [])]

        def asked() -> CachedLogits:
            if config.train.share < 1:
                return logits_of_part(teacher, batches, compute, split.train)
            return teacher_logits(teacher, batches, compute)

        teachers = _teacher_accuracy(folder, job, compute) if ranks.is_first else None
        fit = Fit(
            job.method,
            batches=batches,
            split=split,
            teacher_logits=cache(asked),
            settings=job.train,
            seed=config.seed,
            compute=compute,
            folder=folder,
            evaluate=_evaluation(job.data, compute),
            labels=job.labels,
            # With the user's own teacher: a fitted one has the crawl's statistics.
            typicality=cache(lambda: typicality(job.teacher, batches, split.train, compute)),
            outliers=cache(lambda: find_outliers(job.teacher, batches, split.train, compute)),
            listeners=track,
        )
        try:
            result = fit.run(resume=state == "interrupted")
        except KeyboardInterrupt as interrupt:
            if not ranks.is_first:
                raise FailedElsewhereError("interrupted") from None
            raise type(interrupt)(
                f"interrupted after {fit.at.step:,} of {'at most ' * (fit.budget.epochs is not None)}"
                f"{fit.budget.steps:,} steps; continue with: {again}"
            ) from None
        with ranks.failing_together():
            if watch:
                watch.finish(PATIENCE)
        try:
            summary = (
                _finish(config, folder, job, live, result, compute, batches, fitted, teachers) if ranks.is_first else {}
            )
        except KeyboardInterrupt as interrupt:
            raise type(interrupt)(f"interrupted after the last step; continue with: {again}") from None
        return ranks.from_first(summary)


@contextmanager
def _claimed(folder: RunFolder, state: State, config: DistillConfig, compute: Compute, job: Job) -> Iterator[None]:
    """Claim the run folder: a new one, or one that holds this same run."""
    folder.make()
    with exclusive(folder.lock, what=f"run {folder.path}"):
        if folder.state() != state:
            raise KD3Error(f"another process has just begun a run in {folder.path}; choose another --out")
        folder.clear_temporary()
        identities = {"teacher": job.teacher.fingerprint(), "pool": job.pool.content_hash}
        if state == "absent":
            settings = to_yaml(config, without=METHODS.keys() - {config.method})
            places = from_run(folder.path, config.model_dump())
            plan = {} if job.backbone.plan is None else {SHRUNK: job.backbone.plan.model_dump()}
            folder.begin(settings, {**origin(**identities, compute=str(compute)), KEY: places, **plan})
        else:
            before = folder.check_origin(**identities).get("compute")
            if before != str(compute):
                console.warn(f"the run was begun on {before} and continues on {compute}: the same but for rounding")
        yield


@contextmanager
def _watched(pool: ImagePool, folder: RunFolder) -> Iterator[Watch]:
    """Check the pool; a run must not go on, once the pool is mended, from what it learned of a damaged one."""
    try:
        with watched(pool) as watch:
            yield watch
    except DamagedPoolError:
        folder.forget_training()
        raise


def _evaluation(data: LabelledImages | None, compute: Compute) -> Callable[[Method], dict[str, float]] | None:
    if data is None:
        return None
    return lambda method: {"accuracy": data.accuracy(method.student, compute)}


def _teacher_accuracy(folder: RunFolder, job: Job, compute: Compute) -> float | None:
    """Return the teacher's accuracy on the labelled images, in percent, measured once a run and kept in its origin."""
    if job.data is None:
        return None
    known = json.loads(folder.origin.read_text(encoding="utf-8"))
    if known.get("teacher_accuracy") is None:
        compute.place(job.teacher)
        tally = job.data.tally(job.teacher, job.teacher.normalise, compute, title="teacher on --eval-data")
        known["teacher_accuracy"] = tally.top1_percent
        write_json(folder.origin, known)
        for words in doubts(tally.confusion.numpy(), job.data.matching):
            console.warn(words)
    return float(known["teacher_accuracy"])


def _announcement(config: DistillConfig, job: Job, compute: Compute) -> str:
    teacher_size = parameters_of(job.teacher) / 1e6
    student_size = parameters_of(job.method.student) / 1e6
    images = f"{len(job.pool):,} images{_resized(job.pool)}"
    return (
        f"distil {job.teacher.name} ({teacher_size:.2f} M parameters) into {config.student} ({student_size:.2f} M) "
        f"with {config.method} on {images}; {compute}{_kernels(config.train, compute)}"
    )


def _resized(pool: ImagePool) -> str:
    size, stored = pool.image_size, pool.stored.image_size
    return "" if size == stored else f" of {stored} pixels, resized to {size}"


def _kernels(train: TrainSettings, compute: Compute) -> str:
    """Return the numeric modes of a GPU in words, with their flags."""
    if compute.device.type != "cuda":
        return ""
    flags = {"TF32": train.tf32, "deterministic": train.deterministic, "CUDA graph": can_be_recorded(train, compute)}
    return "".join(f", {name}" for name, holds in flags.items() if holds)


def _finish(
    config: DistillConfig,
    folder: RunFolder,
    job: Job,
    live: Live,
    result: FitResult,
    compute: Compute,
    batches: PoolBatches,
    fitted: FittedTeacher,
    teachers: float | None,
) -> dict[str, Any]:
    """Store the student of the best agreement. The summary is written last and marks the end."""
    method = job.method
    method.student.load_state_dict(load_file(folder.best))
    of_own_teacher = result.best_agreement
    if fitted.blend > 0:
        held_out = job.split.holdout
        logits = score(method.student, batches, held_out, method.student.normalise, compute)
        of_own_teacher = agreement(logits, score(job.teacher, batches, held_out, job.teacher.normalise, compute))
    accuracy = kept_accuracy(read_metrics(folder.metrics, "evaluation"), result.best_step)
    backbone, inheritance = job.backbone, job.backbone.inheritance
    summary = {
        "method": config.method,
        "teacher": config.teacher,
        "student": config.student,
        "pool": config.pool,
        "pool_images": len(job.pool),
        "classes": method.student.classes,
        "agreement": result.best_agreement,
        "accuracy": accuracy,
        "accuracy_images": None if job.data is None else job.data.usable,
        "teacher_accuracy": teachers,
        "difference": None if accuracy is None or teachers is None else accuracy - teachers,
        "agreement_at_end": result.last_agreement,
        "agreement_with_own_teacher": of_own_teacher,
        "init": "random" if inheritance is None else "inherit",
        "inherited": 0.0 if inheritance is None else round(inheritance.share, 4),
        "teacher_statistics": fitted.record(),
        "best_step": result.best_step,
        "steps": result.steps,
        "images": result.images,
        "rounds": result.rounds,
        "seconds": round(result.seconds, 1),
        "images_per_second": round(result.images / max(result.seconds, 1e-9), 1),
        "compute": str(compute),
        "seed": config.seed,
    }
    if backbone.arch is not None and runs_code(backbone.arch):
        summary["student_code"] = True  # for the commands shown next
    if backbone.arch is None and backbone.plan is not None:
        summary["student"] = f"live:{config.student}"  # of a live teacher, whose network is needed
    save_student(
        method.student.to("cpu").eval(),
        folder.student,
        arch=backbone.arch,
        arch_args=backbone.arch_args,
        about=summary,
        shrunk=backbone.plan,
    )
    if (record := _adapted(config, folder, job, live, compute)) is not None:
        summary = with_adaptation(summary, record)
    write_json(folder.summary, summary)
    return summary


def _adapted(config: DistillConfig, folder: RunFolder, job: Job, live: Live, compute: Compute) -> dict[str, Any] | None:
    """Adapt the student in the run folder, as `kd3 adapt` would; return the record."""
    student = load_student(folder.student, module=live.backbone(config.student), trust_code=True)
    precise = replace(compute, precision="32")
    adapted = adapt_student(
        student,
        job.teacher,
        job.pool,
        trained_on(folder, job.pool),
        precise,
        images=config.recall or "off",
        given=job.deployment,
        known=job.kept_out,
        seed=config.seed,
        accuracy=None if job.data is None else partial(job.data.accuracy, compute=precise),
    )
    if adapted is None:
        return None
    keep_adapted(folder, student, *adapted)
    return adapted[0].record()
