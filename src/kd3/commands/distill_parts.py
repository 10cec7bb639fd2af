"""The parts of a distillation, read and checked: teacher, pool, student with its first weights, and the rest."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kd3.commands.distill_memory import memory_for_training, training_of
from kd3.config.commands import GIVEN_IMAGES
from kd3.config.distill import DistillConfig
from kd3.config.records import nameless
from kd3.config.shrink import ShrinkPlan, is_shrunk, parse_shrink
from kd3.config.training import TrainSettings
from kd3.evaluation.compatibility import (
    check_several_labels,
    check_trains,
    evenly_spaced,
    fitted,
    normalisation_on,
    one_class,
)
from kd3.evaluation.labelled import LabelledImages, labelled_for, leak
from kd3.inheritance.at_end import check_recall
from kd3.inheritance.inherited import inherited
from kd3.inheritance.plan import Inheritance
from kd3.inheritance.recalled import ChosenImages, known_images, read_images
from kd3.inheritance.shrinking import as_inheritance, described, plan_shrinking, shrunk
from kd3.methods import Method, Parts, build_method
from kd3.models.arch import build_arch, parse_arch
from kd3.models.batch_norms import normalises
from kd3.models.calling import copy_of
from kd3.models.load_teacher import load_teacher
from kd3.models.projector import Projector, draw_as_torch
from kd3.models.soundness import sound_logits
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool
from kd3.pool.leaks import KnownImages, overlap
from kd3.runtime import console
from kd3.runtime.compute import Compute
from kd3.runtime.errors import KD3Error, in_words
from kd3.runtime.run_folder import RunFolder, State
from kd3.scoring.batches import PoolSplit, seed_for, split_pool
from kd3.scoring.views import check_fixed_views
from kd3.training.learner import check_micro_batch

SHRUNK = "shrunk"  # in a run's origin.json
SAMPLE_IMAGES = 64  # of the pool, for checks before training


@dataclass(frozen=True)
class Backbone:
    """The network to train, and its architecture for rebuilding."""

    network: nn.Module
    inheritance: Inheritance | None  # None: random start
    arch: str | None  # None: a live module's, or a live teacher's
    arch_args: dict[str, Any]
    plan: ShrinkPlan | None = None  # of a shrunken teacher


def backbone_for(
    config: DistillConfig, teacher: Teacher, live: nn.Module | None, sample: Tensor, *, resumed: bool
) -> Backbone:
    """Return the student's network with its initial weights.

    After an interruption a teacher is shrunk again by the plan in the run folder.

    Shapes: sample (B, C, H, W), normalised images of the pool.

    Raises:
        KD3Error: it cannot be built, does not run, or cannot inherit as asked.
    """
    if (asked := parse_shrink(config.student)) is not None:
        rule = config.inherit_blocks or "recovery"
        plan = _begun_with(config) if resumed else plan_shrinking(teacher, sample, asked, rule=rule)
        network = shrunk(teacher, plan)
        arch, arch_args = (None, {}) if teacher.origin is None else teacher.origin.anywhere()
        console.info(f"{config.student} is teacher {teacher.name} with {described(plan)[0]}")
        _sound(network, config, teacher)
        return Backbone(network, as_inheritance(network, plan), arch, arch_args, plan)
    if live is not None:
        network = copy_of(live)
    else:
        network = build_arch(
            config.student,
            num_classes=teacher.num_classes,
            arch_args=config.student_args,
            relative_to=Path(),
            input_size=teacher.input_size,
            channels=teacher.normalise.channels,
        )
        if config.train.random_weights == "torch" and parse_arch(config.student).source == "kd3":
            draw_as_torch(network)
    _sound(network, config, teacher)
    inheritance = None
    if config.init != "random":
        must, blocks = config.init == "inherit", config.inherit_blocks or "even"
        inheritance = inherited(network, teacher, sample, blocks=blocks, name=config.student, must=must)
    return Backbone(network, inheritance, None if live is not None else config.student, config.student_args)


def sample_of(pool: ImagePool, places: np.ndarray, teacher: Teacher) -> Tensor:
    """Return a few normalised images of the pool, of those at `places`, (B, C, H, W), on the teacher's device."""
    images = torch.from_numpy(pool.read(evenly_spaced(places, SAMPLE_IMAGES)))
    # A live teacher may already be on a GPU.
    normalised: Tensor = teacher.normalise(images.to(teacher.normalise.scale.device))
    return normalised


def _sound(network: nn.Module, config: DistillConfig, teacher: Teacher) -> None:
    assert teacher.input_size is not None
    sound_logits(
        network,
        teacher.input_size,
        what=f"student {config.student}",
        channels=teacher.normalise.channels,
        num_classes=teacher.num_classes,
        output=config.student_output,
        chosen_by="--student-output {}",
    )


def _begun_with(config: DistillConfig) -> ShrinkPlan:
    """Return the plan of the interrupted run."""
    path = RunFolder(Path(config.out)).origin
    try:
        return ShrinkPlan.model_validate(json.loads(path.read_text(encoding="utf-8"))[SHRUNK])
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise KD3Error(f"{path} does not hold the plan of {config.student}: {in_words(problem)}") from None


@dataclass(frozen=True)
class Live:
    """Live objects of a caller, instead of names."""

    teacher: Teacher | None = None
    student: nn.Module | None = None
    pool: ImagePool | None = None

    def backbone(self, student: str) -> nn.Module | None:
        """Return the network that only the caller can build: the live student's, or a live teacher's to shrink."""
        if self.teacher is not None and self.student is None and is_shrunk(student):
            return self.teacher.module
        return self.student

    @property
    def again(self) -> bool:
        """Whether only the same call can resume the run, since a command line cannot name live objects."""
        return bool(self.teacher or self.student or (self.pool is not None and self.pool.path is None))


@dataclass(frozen=True)
class Job:
    """The parts of a distillation, read and checked."""

    teacher: Teacher
    pool: ImagePool
    split: PoolSplit
    method: Method
    data: LabelledImages | None
    labels: Tensor | None
    backbone: Backbone
    train: TrainSettings  # without unset rates, or a batch size of `auto`
    deployment: ChosenImages | None
    kept_out: list[KnownImages]  # excluded from statistics


def read_job(config: DistillConfig, compute: Compute, state: State, live: Live) -> Job:
    """Read teacher, pool and student, and refuse or warn of misfits. Nothing is written.

    Raises:
        KD3Error: something does not fit, or cannot be read.
    """
    # First of all: no process may fail before the others have answered.
    memory = memory_for_training(compute) if config.train.batch_size == "auto" else None
    if live.student is None and not is_shrunk(config.student):
        parse_arch(config.student)  # a wrong name should not wait for the checks of the teacher
    teacher = live.teacher or load_teacher(config.teacher)
    pool = live.pool or ImagePool.open(config.pool)
    teacher, pool = fitted(teacher, pool)
    split = split_of(config, pool)
    if state == "absent" and config.method != "labels":  # which needs no teacher
        console.info("checking the teacher on some of the pool's images")
        if doubt := normalisation_on(teacher, pool, compute, split.train).warning:
            console.warn(doubt)
        if (narrow := one_class(teacher, pool, compute, split.train)) is not None:
            console.warn(narrow)
    if state == "absent" and teacher.is_nameless:
        console.info(nameless(teacher.classes))
    data = None if config.eval_data is None else labelled_for(teacher, config.eval_data)
    if data is not None and state == "absent" and (leaked := leak(pool, data).warning):
        console.warn(leaked)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(config.seed, "initial weights"))
        method, backbone = method_of(config, teacher, live.student, pool, resumed=state == "interrupted")
    inherited, normalised = backbone.inheritance is not None, normalises(backbone.network)
    settled = config.train.settled(inherited=inherited, normalised=normalised)
    _check_batch(settled, config, split, compute)
    if state == "absent" and not normalised:
        console.info(_without_norms(config, settled))
    labels = None
    if method.needs_labels:
        found, matching = pool.matched_labels(teacher.classes)
        labels = torch.from_numpy(found)
        for line in matching.lines():
            console.info(line)
        check_several_labels(labels.numpy(), pool, teacher.classes)
    check_trains(method.student, compute, name=config.student)
    check_fixed_views(config.train, pool)
    kept_out = known_images(config.keep_out, teacher.preparation, workers=None)
    if state == "absent":
        _warn_of_kept_out(pool, kept_out)
    deployment = None
    if config.deployment is not None:
        limit = config.recall if isinstance(config.recall, int) else GIVEN_IMAGES
        known = [*kept_out, *([] if data is None else [data.known()])]
        deployment = read_images(config.deployment, teacher.preparation, limit=limit, seed=config.seed, known=known)
    check_recall(config.recall or "off", method.student, teacher, split.train, deployment)
    train = training_of(
        config.train,
        method,
        compute,
        inherited=inherited,
        normalised=normalised,
        images=len(split.train),
        processes=_processes(config, compute),
        memory=memory,
    )
    check_micro_batch(method, train, compute.ranks.count)
    return Job(teacher, pool, split, method, data, labels, backbone, train, deployment, kept_out)


def _without_norms(config: DistillConfig, settled: TrainSettings) -> str:
    """Return the rates of a student in which nothing normalises, and another way for kd3 to teach it."""
    rates = f"--lr {settled.peak:.3g}" + (f" --matrix-lr {settled.matrix_peak:.3g}" * (settled.optimizer == "muon"))
    aligned = config.method == "kd3" and config.kd3.alignment != "none"
    logits = "--kd3.classifier own --kd3.alignment none --kd3.logit-weight 1"
    return f"the student {config.student} has no normalisation layers; it is trained with {rates}" + (
        f". If it agrees little with the teacher, try it from logits: {logits} (docs/paper.md)" if aligned else ""
    )


def _warn_of_kept_out(pool: ImagePool, kept_out: list[KnownImages]) -> None:
    found = {place for known in kept_out for place in overlap(pool, known)}
    if found:
        console.warn(
            f"{len(found):,} of the pool's {len(pool):,} images are like one of --keep-out, but the student still "
            f"trains on them: kd3 ingest --keep-out drops them from a pool"
        )


def _check_batch(train: TrainSettings, config: DistillConfig, split: PoolSplit, compute: Compute) -> None:
    processes = _processes(config, compute)
    if train.batch % processes:
        raise KD3Error(f"--batch-size {train.batch} cannot be divided among {processes} processes alike")
    images = len(split.train)
    if train.epochs is not None and train.epochs * images < train.batch:
        raise KD3Error(
            f"--epochs {train.epochs:g} of {images:,} images are less than one batch of {train.batch:,}; give "
            f"more epochs or a smaller --batch-size"
        )


def _processes(config: DistillConfig, compute: Compute) -> int:
    return max(compute.ranks.count, config.devices * config.nodes)


def split_of(config: DistillConfig, pool: ImagePool) -> PoolSplit:
    """Return the split of the pool into training and held-out images."""
    return split_pool(pool, config.train.holdout, share=config.train.share)


def method_of(
    config: DistillConfig, teacher: Teacher, student: nn.Module | None, pool: ImagePool, *, resumed: bool
) -> tuple[Method, Backbone]:
    """Return the method with its student, and the origin of the student."""
    sample = sample_of(pool, split_of(config, pool).train, teacher)
    backbone = backbone_for(config, teacher, student, sample, resumed=resumed)
    parts = Parts(teacher, backbone.network, config.student, sample, inherited=backbone.inheritance is not None)
    method = build_method(config.method, config.method_options, parts)
    if config.train.random_weights == "torch":
        for module in method.modules():
            if isinstance(module, Projector):
                draw_as_torch(module)
    return method, backbone
