"""Candidate students: smaller networks of the teacher's family in the zoo, and the shrunken teacher."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kd3.config.shrink import Shrink
from kd3.errors import KD3Error
from kd3.inheritance.plan import plan_inheritance
from kd3.inheritance.shrinking import blocks_of, plan_shrinking, shrunk
from kd3.models.arch import build_arch, parse_arch
from kd3.models.multiply_adds import multiply_adds
from kd3.models.soundness import sound_logits
from kd3.models.teacher import Teacher
from kd3.models.zoo.names import ZOO

SHARES = (0.5, 0.3, 0.15)


@dataclass(frozen=True)
class Candidate:
    """A student that could be distilled."""

    name: str  # as for --student
    network: nn.Module  # with any weights
    inherits: float  # part of its parameters from the teacher, in [0, 1]


def candidates(teacher: Teacher, images: Tensor) -> tuple[list[Candidate], list[str]]:
    """Return the students to choose from, and a sentence for each impossible share of shrinking.

    Shapes: images (B, C, H, W), normalised: of the pool.
    """
    found, problems = _family(teacher, images), []
    try:
        blocks = blocks_of(teacher, images, "recovery")
    except KD3Error as problem:
        return found, [str(problem)]
    for share in SHARES:
        asked = Shrink(share)
        try:
            network = shrunk(teacher, plan_shrinking(teacher, images, asked, rule="recovery", known=blocks))
        except KD3Error as problem:
            problems.append(f"{asked}: {problem}")
            continue
        found.append(Candidate(str(asked), network, 1.0))
    return found, problems


def _family(teacher: Teacher, images: Tensor) -> list[Candidate]:
    """Return the networks of the zoo of the teacher's class with fewer multiply-adds, the largest first."""
    if teacher.origin is None:
        return []
    reference = parse_arch(teacher.origin.arch)
    if reference.source != "kd3" or reference.target not in ZOO:
        return []
    most = multiply_adds(teacher.module, images[:1])
    assert teacher.input_size is not None
    found: list[tuple[int, Candidate]] = []
    for name, entry in ZOO.items():
        if entry.builder != ZOO[reference.target].builder or name == reference.target:
            continue
        student = f"kd3:{name}"
        with torch.random.fork_rng(devices=[]):
            network = build_arch(
                student,
                num_classes=teacher.num_classes,
                relative_to=Path(),
                input_size=teacher.input_size,
                channels=teacher.normalise.channels,
            )
        channels = teacher.normalise.channels
        sound_logits(
            network,
            teacher.input_size,
            what=f"student {student}",
            channels=channels,
            num_classes=teacher.num_classes,
        )
        count = multiply_adds(network, images[:1].cpu())
        if count < most:
            plan = plan_inheritance(network, teacher.module)
            found.append((count, Candidate(student, network, 0.0 if plan.is_empty else plan.share)))
    return [candidate for _, candidate in sorted(found, key=lambda pair: -pair[0])]
