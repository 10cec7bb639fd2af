"""`kd3 inspect`: what was found in a teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from kd3.config.commands import InspectConfig
from kd3.models.teacher import load_teacher


@dataclass(frozen=True)
class Inspection:
    """What a teacher is made of, and whether its head can be shared."""

    teacher: str
    arch: str
    loaded: str
    parameters: int
    multiply_adds: int
    input_size: int
    num_classes: int
    classes: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classifier: str | None
    features: str | None
    feature_shape: tuple[int, ...] | None
    head_problem: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return dict(self.__dict__)

    def __str__(self) -> str:
        more = ", ..." if self.num_classes > 10 else ""
        lines = [
            f"{self.arch} ({self.teacher})",
            f"  weights     {self.loaded}",
            f"  size        {self.parameters / 1e6:.2f} M parameters, "
            f"{self.multiply_adds / 1e6:.0f} M multiply-adds an image",
            f"  input       {self.input_size} x {self.input_size} RGB in [0, 1], mean {self.mean}, std {self.std}",
            f"  classes     {self.num_classes}: {', '.join(self.classes[:10])}{more}",
        ]
        if self.head_problem:
            lines.append(f"  head        cannot be shared: {self.head_problem}; use --method kd")
        else:
            shape = " x ".join(map(str, self.feature_shape or ()))
            lines += [
                f"  classifier  '{self.classifier}'",
                f"  features    {self.features}: {shape}",
                "  head        can be shared (verified: classifier(pool(features)) gives the model's own logits)",
            ]
        return "\n".join(lines)


def inspect(path: str) -> Inspection:
    """Return what was found in the teacher that a description tells of.

    Raises:
        KD3Error: it cannot be loaded.
    """
    from torch.utils.flop_counter import FlopCounterMode

    teacher = load_teacher(path)
    assert teacher.input_size is not None
    probe = torch.zeros(1, 3, teacher.input_size, teacher.input_size)
    with FlopCounterMode(display=False) as counter:
        teacher(probe)
    head = teacher.head
    return Inspection(
        teacher=path,
        arch=teacher.name,
        loaded=teacher.loaded,
        parameters=sum(p.numel() for p in teacher.parameters()),
        multiply_adds=counter.get_total_flops() // 2,
        input_size=teacher.input_size,
        num_classes=teacher.num_classes,
        classes=teacher.classes,
        mean=teacher.normalise.mean,
        std=teacher.normalise.std,
        classifier=head.classifier if head else None,
        features=str(head) if head else None,
        feature_shape=tuple(teacher.outputs(probe).features.shape[1:]) if head else None,
        head_problem=teacher.head_problem,
    )


def run(config: InspectConfig) -> Inspection:
    """Run the command line's settings."""
    return inspect(config.teacher)
