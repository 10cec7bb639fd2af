"""`kd3 inspect`: what was found in a teacher."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kd3.commands.fitting import LOOKED_AT, check_sizes, normalisation_on
from kd3.compute import resolve
from kd3.config.commands import InspectConfig
from kd3.domain_shift.normalisation import NormalisationCheck
from kd3.models.teacher import load_teacher
from kd3.pool import ImagePool

OWN_CLASSIFIER = "--kd3.classifier own --kd3.alignment none --kd3.logit-weight 1"


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
    normalisation: NormalisationCheck | None  # on a pool

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        found = {**self.__dict__, "normalisation": None}
        if self.normalisation is not None:
            found["normalisation"] = {**asdict(self.normalisation), "warning": self.normalisation.warning}
        return found

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
            lines += [
                f"  head        cannot be shared: {self.head_problem}",
                f"              so the student needs a classifier of its own: {OWN_CLASSIFIER}, or --method kd",
            ]
        else:
            shape = " x ".join(map(str, self.feature_shape or ()))
            lines += [
                f"  classifier  '{self.classifier}'",
                f"  features    {self.features}: {shape}",
                "  head        can be shared (verified: classifier(pool(features)) gives the model's own logits)",
            ]
        if self.normalisation is not None:
            lines += self._normalisation_lines(self.normalisation)
        return "\n".join(lines)

    def _normalisation_lines(self, check: NormalisationCheck) -> list[str]:
        lines = ["  on the pool                                      batch norms  confidence  classes"]
        for reading in (check.given, *check.others):
            distance = "" if reading.distance is None else f"{reading.distance:.3g}"
            confidence, classes = f"{100 * reading.confidence:.0f} %", f"{reading.effective_classes:.1f}"
            lines.append(f"    {reading.setting:<46} {distance:>11}  {confidence:>10}  {classes:>7}")
        verdict = f"warning: {check.warning}" if check.warning else "nothing speaks against mean, std and colour order"
        return [*lines, f"    {verdict}"]


def inspect(path: str, *, pool: str | Path | ImagePool | None = None) -> Inspection:
    """Return what was found in the teacher that a description tells of, or that a library has under a name.

    Args:
        path: as for `kd3.load_teacher`.
        pool: looks there whether mean, std and the order of colours fit.

    Raises:
        KD3Error: it cannot be loaded, or the pool's images are of another size.
    """
    from torch.utils.flop_counter import FlopCounterMode

    teacher = load_teacher(path)
    check = None
    if pool is not None:
        opened = pool if isinstance(pool, ImagePool) else ImagePool.open(pool)
        check_sizes(teacher, opened)
        places = np.sort(np.random.default_rng(0).permutation(len(opened))[:LOOKED_AT])
        check = normalisation_on(teacher, opened, resolve("cpu", "32"), places)
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
        normalisation=check,
    )


def run(config: InspectConfig) -> Inspection:
    """Run the command line's settings."""
    return inspect(config.teacher, pool=config.pool)
