"""`kd3 plan`: recommend a student and estimate the cost of a run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kd3.commands.arguments import POOL, TEACHER, as_setting, if_live
from kd3.commands.distill_parts import sample_of
from kd3.config.commands import GIVEN_IMAGES
from kd3.config.methods import METHODS
from kd3.config.pool_commands import PlanConfig
from kd3.config.settings import build
from kd3.config.training import TrainSettings
from kd3.evaluation.compatibility import fitted, normalisation_on
from kd3.evaluation.shift_measure import Measurement, measure
from kd3.evaluation.shift_verdict import Forecast, forecast
from kd3.exports.formats import check_onnx_packages
from kd3.inheritance.recalled import read_images
from kd3.methods import Parts, build_method
from kd3.models.costs import Cost, SampleSize, costs
from kd3.models.load_teacher import load_teacher
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool
from kd3.pool.checks import watched
from kd3.runtime import console
from kd3.runtime.compute import Compute, resolve
from kd3.runtime.errors import KD3Error
from kd3.scoring.batches import split_pool
from kd3.sources.files import shown
from kd3.sources.trust import with_permissions
from kd3.studies.advice import Choice, Plan, best_student, budget_for, for_the_crawl, method_for
from kd3.studies.candidates import Candidate, Exported, Pace, candidates, exported, pace_of

SAMPLED = SampleSize(1000, 128)  # images of the pool


@console.quietable
def plan(teacher: str | Path | Teacher, pool: str | Path | ImagePool, **settings: Any) -> Plan:
    """Compare students before a run: cost, duration here and expected accuracy.

    `settings` are `quiet=True` and those of `kd3 plan --help`: deployment, minutes, int8, trust_code, device,
    precision.

    Args:
        teacher: its description, or a live teacher.
        pool: folder made by `kd3.ingest`, or a live pool.

    Raises:
        KD3Error: teacher, pool or deployment images are missing or do not fit, or `minutes` are too few for a step.
    """
    values = {
        "teacher": as_setting(teacher, what="kd3.plan: teacher", allowed=TEACHER, live=(Teacher,)),
        "pool": as_setting(pool, what="kd3.plan: pool", allowed=POOL, live=(ImagePool,)),
    }
    config = build(PlanConfig, {**values, **settings}, where="kd3.plan")
    return run(config, if_live(teacher, Teacher), if_live(pool, ImagePool))


@with_permissions
def run(config: PlanConfig, teacher: Teacher | None = None, pool: ImagePool | None = None) -> Plan:
    """Plan for the teacher and pool that the settings name, or for live ones."""
    if config.int8:
        check_onnx_packages()
    compute = resolve(config.device, config.precision)
    teacher = teacher or load_teacher(config.teacher, trust_code=config.trust_code or None)
    pool = pool or ImagePool.open(config.pool)
    teacher, pool = fitted(teacher, pool)
    settings = TrainSettings()
    split = split_pool(pool, settings.holdout)
    with watched(pool):
        drawn = _drawn(pool)
        everywhere = np.arange(len(drawn))
        compute.place(teacher)
        if doubt := normalisation_on(teacher, drawn, compute, everywhere).warning:
            console.warn(doubt)
        found = measure(teacher, drawn, None, compute, limit=0, seed=0, sample_of=len(pool))
        deployment = None if config.deployment is None else _deployment(config.deployment, teacher, found, compute)
        sample = sample_of(drawn, everywhere, teacher).cpu()
        teacher = teacher.cpu()
        options, problems = candidates(teacher, sample)
        networks: dict[str, nn.Module] = {"teacher": teacher, **{option.name: option.network for option in options}}
        cost = costs(networks, sample)
        shipped: dict[str, Exported] = {}
        if config.int8:
            console.info("exporting these networks to ONNX and timing the files, in float32 and in 8 bits")
            shipped, unexported = exported(networks, sample)
            problems = [*problems, *unexported]
        whole = cost.pop("teacher")
        best = best_student(cost, whole)
        method, why_method = method_for(teacher)
        measured = next((option for option in options if option.name == best), options[-1] if options else None)
        pace = (
            _pace(measured, method, teacher, pool, split.train, settings, compute, sample)
            if measured is not None
            else Pace(0, settings.batch, 0.0)
        )
    run_of = _Run(pace, settings.settled(inherited=measured is not None and measured.inherits > 0).batch)
    affordable = None
    if config.minutes is not None and measured is not None:
        affordable = run_of.affordable(config.minutes, cost[measured.name], whole)
    images, why_budget = budget_for(affordable)
    advice = [why_method, why_budget, *for_the_crawl(found, has_deployment=deployment is not None)]
    return Plan(
        teacher=config.teacher,
        pool=config.pool,
        pool_images=len(pool),
        compute=str(compute),
        verdict=found.verdict,
        teacher_cost=whole,
        choices=[
            Choice(
                option.name,
                cost[option.name],
                option.inherits,
                0.0 if measured is None else run_of.seconds(images, cost[option.name], cost[measured.name], whole),
            )
            for option in options
        ],
        student=best,
        pace=pace,
        method=method,
        images=images,
        advice=advice,
        forecast=_forecast(found, len(pool), images),
        deployment=deployment,
        problems=problems,
        exported=shipped,
    )


def _drawn(pool: ImagePool) -> ImagePool:
    """Return a sample of the pool: the images that everything but the pace is measured on, read once."""
    count = SAMPLED.of(pool.image_size)
    places = np.sort(np.random.default_rng(0).permutation(len(pool))[:count])
    return ImagePool.from_array(pool.read(places))


def _deployment(source: str, teacher: Teacher, found: Measurement, compute: Compute) -> str:
    """Describe in a sentence the shift of the deployment images."""
    given = read_images(source, teacher.preparation, limit=GIVEN_IMAGES, seed=0).images
    there = measure(teacher, ImagePool.from_array(given.numpy()), None, compute, limit=0, seed=0).batch_norms
    if there is None or found.batch_norms is None:
        return f"{len(given):,} images of {shown(source)}: the teacher has no batch norms to compare them by."
    nearer = "nearer to the training data than" if there.mean < found.batch_norms.mean else "no nearer to it than"
    return (
        f"{len(given):,} images of {shown(source)} are {nearer} the crawl (batch-norm distance {there.mean:.3f}; the "
        f"crawl's {found.batch_norms.mean:.3f})."
    )


def _pace(
    candidate: Candidate,
    name: str,
    teacher: Teacher,
    pool: ImagePool,
    places: np.ndarray,
    settings: TrainSettings,
    compute: Compute,
    sample: torch.Tensor,
) -> Pace:
    """Measure the pace of a run with a copy of a candidate."""
    inherited = candidate.inherits > 0
    parts = Parts(teacher, copy.deepcopy(candidate.network), candidate.name, sample, inherited=inherited)
    method = build_method(name, METHODS[name].options(), parts)
    return pace_of(method, pool, places, settings.settled(inherited=inherited), compute)


class _Run:
    """Durations of runs: of a measured candidate, and of others by their latency."""

    def __init__(self, pace: Pace, batch: int) -> None:
        self.pace, self.batch = pace, batch  # images in a step of a run

    def seconds(self, images: int, cost: Cost, measured: Cost, teacher: Cost) -> float:
        """Return the seconds of a run."""
        return images * self._per_image(cost, measured, teacher)

    def affordable(self, minutes: float, measured: Cost, teacher: Cost) -> int:
        """Return the number of training images that the measured candidate can use in the given minutes.

        Raises:
            KD3Error: not even for one step.
        """
        per_image = self._per_image(measured, measured, teacher)
        images = int(60 * minutes / per_image)
        if images < self.batch:
            least = self.batch * per_image / 60
            raise KD3Error(
                f"--minutes {minutes:g} are too few for one step of {self.batch} images on this machine; it takes "
                f"about {least:.2g} minutes"
            )
        unit = int(10 ** max(0, len(str(images)) - 2))
        return images // unit * unit

    def _per_image(self, cost: Cost, measured: Cost, teacher: Cost) -> float:
        # A step is the teacher forward, and the student forward and back, which costs about three times forward.
        work = (teacher.many + 3 * cost.many) / (teacher.many + 3 * measured.many)
        return work * self.pace.seconds / self.pace.batch


def _forecast(found: Measurement, pool_images: int, images: int) -> Forecast | None:
    if found.batch_norms is None:
        return None
    opinions = found.opinions
    distance, classes = found.batch_norms.mean, len(opinions.classes)
    return forecast(distance, opinions.effective_classes, classes=classes, images=pool_images, trained=images)
