"""The student's network with its initial weights: a new one, a live one, or a shrunken teacher."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd3 import console
from kd3.commands.fitting import spread
from kd3.config.commands import DistillConfig
from kd3.config.shrink import parse_shrink
from kd3.errors import KD3Error
from kd3.inheritance.inherited import inherited
from kd3.inheritance.plan import Inheritance
from kd3.inheritance.shrinking import as_inheritance, described, plan_shrinking, shrunk
from kd3.models.arch import build_arch, parse_arch
from kd3.models.copying import copy_of
from kd3.models.projector import draw_as_torch
from kd3.models.shrink_plan import ShrinkPlan
from kd3.models.soundness import sound_logits
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool
from kd3.runs.folder import RunFolder
from kd3.training.pool_split import PoolSplit

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
        console.say(f"{config.student} is teacher {teacher.name} with {described(plan)[0]}")
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


def sample_of(pool: ImagePool, split: PoolSplit, teacher: Teacher) -> Tensor:
    """Return a few normalised training images of the pool, (B, C, H, W), on the teacher's device."""
    images = torch.from_numpy(pool.read(spread(split.train, SAMPLE_IMAGES)))
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
        raise KD3Error(f"{path} does not hold the plan of {config.student}: {problem}") from None
