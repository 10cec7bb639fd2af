"""A student that uses the teacher's classifier, and projectors to the teacher's features.

Source: KD3 (arXiv 2307.11469), shared classifier; SimKD (arXiv 2203.14001).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd3.models.head import HeadNotFound, find_head
from kd3.models.projector import Correction, Projector
from kd3.models.student import Student, shared_head, smaller_map
from kd3.models.teacher import Teacher


def student_with_teachers_classifier(
    teacher: Teacher,
    backbone: nn.Module,
    backbone_name: str,
    sample: Tensor,
    *,
    projector: Literal["auto", "simkd", "correction", "none"],
    projector_width: int | None,
) -> Student:
    """Return a student with the teacher's classifier; `sample` (B, 3, H, W) shows the features' shape and range.

    Raises:
        KD3Error: the teacher's head cannot be shared, or the student's features cannot be found, or (without a
            projector) their channels differ from the teacher's.
    """
    features = teacher.outputs(sample).features
    student = shared_head(
        backbone,
        teacher.signature(),
        name=backbone_name,
        classifier=teacher.classifier(),
        projector="simkd" if projector == "auto" else projector,
        projector_width=projector_width,
        final_relu=never_negative(features),
        teacher_map=features.shape[2:],
    )
    if isinstance(student.projector, Correction):
        _fit_lift(student, student.projector, teacher, sample)
    return student


def _fit_lift(student: Student, correction: Correction, teacher: Teacher, sample: Tensor) -> None:
    """Fit the correction's initial linear map to the teacher's features."""
    wanted = teacher.outputs(sample).features
    student.to(sample.device)
    before = {name: value.clone() for name, value in student.named_buffers()}
    # Training mode: inherited batch norms hold statistics of other preceding layers.
    student.train()
    with torch.no_grad():
        features = student.features(sample)
    for name, value in student.named_buffers():
        value.copy_(before[name])
    size = min(features.shape[-1], wanted.shape[-1])
    correction.fit_lift(F.adaptive_avg_pool2d(features, size), F.adaptive_avg_pool2d(wanted, size))


def training_projector(teacher: Teacher, student: Student, sample: Tensor, *, width: int | None) -> Projector:
    """Return a projector that helps to train a student with its own classifier, and is not shipped."""
    assert student.head is not None
    channels, features = teacher.shared_head().channels, teacher.outputs(sample).features
    size = smaller_map(student.backbone, student.head, student.input_size, features.shape[2:])
    return Projector(student.head.channels, channels, width=width, final_relu=never_negative(features), size=size)


def projector_for(teacher: Teacher, backbone: nn.Module, *, inherited: bool) -> Literal["simkd", "correction", "none"]:
    """Return the projector for `auto`: randomly initialised only if nothing was inherited."""
    if not inherited or teacher.head is None:
        return "simkd"
    assert teacher.input_size is not None
    try:
        channels = find_head(backbone, teacher.input_size).channels
    except HeadNotFound:
        return "simkd"
    return "none" if channels == teacher.head.channels else "correction"


def never_negative(features: Tensor) -> bool:
    """Return whether the teacher's features come from a ReLU; only then may a projector end in one."""
    return bool((features >= 0).all())
