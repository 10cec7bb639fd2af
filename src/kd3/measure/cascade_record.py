"""Record of a cascade: the share for each agreement, the curve, the temperature."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from kd3 import console
from kd3.class_names import places
from kd3.compute import Compute
from kd3.errors import KD3Error
from kd3.measure.calibration import Reliability, fit_temperature
from kd3.measure.cascade import AGREEMENTS, CONFIDENCE, Cascade, margins
from kd3.models.student import Student
from kd3.models.teacher import Teacher

BATCH = 256


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
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            batch = part.to(compute.device).contiguous(memory_format=torch.channels_last)
            own.append(student(student.normalise(batch)).double().cpu())
            theirs.append(teacher(teacher.normalise(batch))[:, order].argmax(dim=1).cpu())
            bar.advance(len(part))
    return torch.cat(own), torch.cat(theirs)


def measured(
    logits: Tensor, answers: Tensor, *, confidence: float = CONFIDENCE, agreements: Iterable[float] = AGREEMENTS
) -> dict[str, Any]:
    """Compare a student with its teacher, in percent except the temperature and the margins.

    Shapes: logits (N, K) of the student, answers (N,) of the teacher, on images that the student was not trained on.
    """
    cascade = Cascade(margins(logits), logits.argmax(dim=1) == answers)
    temperature = fit_temperature(logits, answers)
    scales = {"as trained": 1.0, "scaled": temperature}
    bins = {name: Reliability.of(logits, answers, scale) for name, scale in scales.items()}
    points = [asdict(one) for one in cascade.curve(confidence)]
    return {
        "temperature": round(temperature, 4),
        "confidence": confidence,
        "images": cascade.count,
        "agreement_alone": cascade.at(0.0)[1],
        "calibration_error": {name: round(one.error_percent, 2) for name, one in bins.items()},
        "thresholds": [asdict(cascade.threshold(agreement, confidence)) for agreement in sorted(set(agreements))],
        "curve": [{name: round(value, 3) for name, value in point.items()} for point in points],
        "reliability": {name: [asdict(one) for one in bins[name].bins()] for name in bins},
    }
