"""`kd3 inspect`: the parts of a teacher."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from kd3.commands.distill_parts import SAMPLE_IMAGES, sample_of
from kd3.config.commands import InspectConfig
from kd3.config.records import nameless
from kd3.config.shrink import PREFIX, ShrinkPlan, parse_shrink
from kd3.config.training import TrainSettings
from kd3.evaluation.compatibility import CHECKED, NormalisationCheck, fitted, normalisation_on
from kd3.inheritance.inherited import planned, rows
from kd3.inheritance.plan import Inheritance
from kd3.inheritance.shrinking import described, plan_shrinking
from kd3.models.arch import build_arch
from kd3.models.calling import calling_of
from kd3.models.costs import multiply_adds, parameters_of
from kd3.models.head import probe_images
from kd3.models.load_teacher import load_teacher
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool
from kd3.pool.checks import watched
from kd3.runtime.compute import resolve
from kd3.runtime.errors import KD3Error
from kd3.runtime.text import first_of, one_line
from kd3.scoring.batches import split_pool

WITHOUT_FEATURES = "--kd3.classifier own --kd3.alignment none --kd3.logit-weight 1"
WITH_FEATURES = "--kd3.classifier own"
SHOWN = 10  # class names
PROBED = 2  # images; exported programs may require more than one
HOLDOUT = int(TrainSettings.model_fields["holdout"].default)


@dataclass(frozen=True)
class Inspection:
    """The parts of a teacher, and whether its head can be shared."""

    teacher: str
    arch: str
    loaded: str
    parameters: int
    multiply_adds: int  # per image
    input_size: int
    num_classes: int
    classes: list[str]
    named: bool  # by its description
    mean: tuple[float, ...]
    std: tuple[float, ...]
    colours: Literal["rgb", "bgr"]  # of its training; it now takes RGB
    called: list[str]  # unusual calling conventions, in words
    assumed: list[str]  # settings taken from its library
    preparation: str  # its library's picture preparation; empty if unknown
    classifier: str | None
    features: str | None
    feature_shape: tuple[int, ...] | None
    head_problem: str | None  # obstacle to sharing the classifier
    normalisation: NormalisationCheck | None  # on a pool
    student: str | None = None
    inheritance: Inheritance | None = None  # of the student from this teacher
    shrunk: ShrinkPlan | None = None  # of a student shrunk from this teacher

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        found = {**self.__dict__, "normalisation": None, "inheritance": None}
        found["shrunk"] = None if self.shrunk is None else self.shrunk.model_dump()
        if self.inheritance is not None:
            table = [asdict(row) for row in rows(self.inheritance)]
            found["inheritance"] = {"share": self.inheritance.share, "parts": table}
        if self.normalisation is not None:
            found["normalisation"] = {**asdict(self.normalisation), "warning": self.normalisation.warning}
        return found

    def __str__(self) -> str:
        frozen = "a frozen program, whose parameters cannot be counted"
        size = f"{_spoken(self.parameters)} parameters" if self.parameters else frozen
        colours = "grey" if len(self.mean) == 1 else "RGB"
        lines = [
            one_line(f"{self.arch} ({self.teacher})"),
            f"  weights     {self.loaded}",
            f"  size        {size}, {_spoken(self.multiply_adds)} multiply-adds an image",
            f"  input       {self.input_size} x {self.input_size} {colours} in [0, 1], mean {_short(self.mean)}, "
            f"std {_short(self.std)}",
        ]
        lines += [f"              {remark}" for remark in self.called]
        if self.assumed:
            is_or_are = "is" if len(self.assumed) == 1 else "are"
            lines.append(
                f"              {', '.join(self.assumed)} {is_or_are} not in the description, but as the library's own "
                f"weights have it: is that so for these?"
            )
        if self.colours == "bgr":
            lines.append("              it was trained on B, G, R; its first layer is turned, so that it takes R, G, B")
        if self.preparation:
            lines.append(f"  pictures    {self.preparation}")
        lines.append(f"  classes     {self.num_classes}: {first_of([*map(one_line, self.classes)], SHOWN)}")
        if not self.named:
            lines.append(f"              {nameless(self.classes)}")
        lines += self._head_lines()
        if self.normalisation is not None:
            lines += self._normalisation_lines(self.normalisation)
        if self.inheritance is not None:
            lines += self._inheritance_lines(self.inheritance)
        if self.shrunk is not None:
            first, *rest = described(self.shrunk)
            lines += [f"  student     {self.student}: {first}", *(f"              {line}" for line in rest)]
            if self.normalisation is None:
                lines.append("              measured on noise; --pool POOL measures it on the images that it will see")
        return "\n".join(lines)

    def _head_lines(self) -> list[str]:
        lines = []
        if self.features is not None:
            shape = " x ".join(map(str, self.feature_shape or ()))
            lines += [f"  classifier  '{self.classifier}'", f"  features    {self.features}: {shape}"]
        if self.head_problem is None:
            return [
                *lines,
                "  head        can be shared (verified: classifier(pool(features)) gives the model's own logits)",
            ]
        instead = WITHOUT_FEATURES if self.features is None else WITH_FEATURES
        return [
            *lines,
            f"  head        cannot be shared: {self.head_problem}",
            f"              so the student needs a classifier of its own: {instead}, or --method kd",
        ]

    def _normalisation_lines(self, check: NormalisationCheck) -> list[str]:
        lines = ["  on the pool                                         distance  confidence  classes"]
        for reading in (check.given, *check.others):
            distance = "" if reading.distance is None else f"{reading.distance:.3g}"
            confidence, classes = f"{100 * reading.confidence:.0f}%", f"{reading.effective_classes:.1f}"
            lines.append(f"    {reading.setting:<46} {distance:>11}  {confidence:>10}  {classes:>7}")
        verdict = f"warning: {check.warning}" if check.warning else "nothing speaks against mean, std and colour order"
        return [*lines, f"    {verdict}"]

    def _inheritance_lines(self, inheritance: Inheritance) -> list[str]:
        if inheritance.is_empty:
            return [f"  student     {self.student} inherits nothing: its parts do not fit; it starts at random"]
        table = rows(inheritance)
        wide = max(len(row.part) for row in table)
        wide_source = max(len(row.source) for row in table)
        lines = [
            f"  student     {self.student} inherits {100 * inheritance.share:.0f}% of its parameters:",
            f"    {'part':<{wide}}  {'from':<{wide_source}}  {'parameters':>10}  how",
        ]
        lines += [
            f"    {row.part:<{wide}}  {row.source or '-':<{wide_source}}  {row.parameters:>10,}  {row.how}"
            for row in table
        ]
        if inheritance.problem:
            lines.append(f"    {inheritance.problem}")
        return lines


def inspect(
    path: str | Path, *, pool: str | Path | ImagePool | None = None, student: str | nn.Module | None = None
) -> Inspection:
    """Return a description of the teacher, and of the parts that a student can inherit from it.

    Args:
        path: as for `kd3.load_teacher`.
        pool: used to check mean, std and the order of colours.
        student: an architecture, or a live module: adds the table of inherited parts; or `shrink:0.3`: adds the removed
            parts of the teacher.

    Raises:
        KD3Error: one of them cannot be loaded, or the pool's images are smaller than the teacher's.
    """
    teacher = load_teacher(path)
    check, opened = None, None
    if pool is not None:
        opened = pool if isinstance(pool, ImagePool) else ImagePool.open(pool)
        teacher, opened = fitted(teacher, opened)
        places = np.sort(np.random.default_rng(0).permutation(len(opened))[: CHECKED.small])
        with watched(opened):
            check = normalisation_on(teacher, opened, resolve("cpu", "32"), places)
    assert teacher.input_size is not None
    probe = torch.zeros(PROBED, teacher.normalise.channels, teacher.input_size, teacher.input_size)
    head = teacher.head
    inheritance, shrunk = None, None
    if isinstance(student, str) and student.partition(":")[0] == PREFIX:
        shrunk = _shrunk(student, teacher, opened)
    elif student is not None:
        backbone = student if isinstance(student, nn.Module) else _built(student, teacher)
        inheritance = planned(backbone, teacher, probe, blocks="even")
    return Inspection(
        teacher=str(path),
        arch=teacher.name,
        loaded=teacher.loaded,
        parameters=parameters_of(teacher),
        multiply_adds=multiply_adds(teacher, probe),
        input_size=teacher.input_size,
        num_classes=teacher.num_classes,
        classes=teacher.classes,
        named=not teacher.is_nameless,
        mean=teacher.normalise.mean,
        std=teacher.normalise.std,
        colours="bgr" if teacher.is_turned else "rgb",
        called=_remarks(teacher),
        assumed=teacher.assumed,
        preparation=teacher.pictures,
        classifier=head.classifier if head else None,
        features=str(head) if head else None,
        feature_shape=tuple(teacher.outputs(probe).features.shape[1:]) if head else None,
        head_problem=teacher.sharing_problem(),
        normalisation=check,
        student=type(student).__name__ if isinstance(student, nn.Module) else student,
        inheritance=inheritance,
        shrunk=shrunk,
    )


def _built(student: str, teacher: Teacher) -> nn.Module:
    return build_arch(
        student,
        num_classes=teacher.num_classes,
        arch_args={},
        relative_to=Path(),
        input_size=teacher.input_size,
        channels=teacher.normalise.channels,
    )


def _shrunk(student: str, teacher: Teacher, pool: ImagePool | None) -> ShrinkPlan:
    """Return the shrinking plan of this teacher, with the same images as `kd3 distill`."""
    try:
        asked = parse_shrink(student)
    except ValueError as problem:
        raise KD3Error(f"--student {problem}") from None
    assert asked is not None
    assert teacher.input_size is not None
    if pool is None:
        images = probe_images(teacher.module, teacher.input_size, images=SAMPLE_IMAGES, seed=0)
    else:
        images = sample_of(pool, split_pool(pool, HOLDOUT).train, teacher)
    return plan_shrinking(teacher, images, asked, rule="recovery")


def _remarks(teacher: Teacher) -> list[str]:
    """Describe changes of the network's images and outputs, and whether it runs in autocast here."""
    calling = calling_of(teacher.module)
    compute = resolve("auto", "auto")
    if compute.precision != "32":
        assert teacher.input_size is not None
        side = teacher.input_size
        with compute.autocast():
            compute.place(teacher)(torch.zeros(PROBED, teacher.normalise.channels, side, side, device=compute.device))
        teacher.cpu()
    in_float32 = f"it does not run in {compute.precision} autocast and is computed in float32"
    remarks = {
        "of RGB images it gets the luma (ITU-R BT.601)": teacher.normalise.channels == 1,
        "it reads three channels, and gets the grey one three times": calling.grey_thrice,
        "it flattens its maps by .view, so they are kept contiguous (.reshape or .flatten would be faster)": (
            calling.contiguous
        ),
        f"its output {calling.output} holds the logits": calling.output is not None,
        "its one logit z stands for the logits (0, z)": calling.one_logit,
        in_float32: teacher.runs_in_autocast is False,
    }
    return [remark for remark, holds in remarks.items() if holds]


def _spoken(count: int) -> str:
    if count < 1e5:
        return f"{count:,}"
    return f"{count / 1e6:.3g} M" if count < 1e9 else f"{count / 1e6:,.0f} M"


def _short(values: tuple[float, ...]) -> str:
    return f"({', '.join(f'{value:.4g}' for value in values)})"


def run(config: InspectConfig) -> Inspection:
    """Run the command line's settings."""
    return inspect(config.teacher, pool=config.pool, student=config.student)
