"""Definition of a distillation method: a student to train, its training images, and the loss.

A student that uses the teacher's classifier, and projectors to the teacher's features. Source: KD3 (arXiv 2307.11469),
shared classifier; SimKD (arXiv 2203.14001).
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd3.config.methods import METHODS
from kd3.config.settings import Settings
from kd3.models.head import HeadNotFound, ModelOutput, find_head, hidden_matrices
from kd3.models.projector import Correction, Projector
from kd3.models.student import Student, own_head, shared_head, smaller_map
from kd3.models.teacher import Teacher
from kd3.runtime.errors import unknown_name
from kd3.runtime.ranks import ALONE, Ranks
from kd3.selection import Predictions, Selection


class Scan(Protocol):
    """Outputs of both networks for the pool's training images.

    Computed on request: a method that does not select pays nothing.
    """

    @property
    def count(self) -> int:
        """Number of images N."""

    def teacher_logits(self) -> Iterator[Tensor]:
        """Yield the teacher's logits of plain views in order, (n, K) at a time, computed once for a pool and kept."""

    def predictions(self, teacher_weight: float) -> Predictions:
        """Return predictions of teacher_weight * z_T + (1 - teacher_weight) * z_S for each image's plain view now."""

    def typicality(self) -> Tensor:
        """Return each image's distance from the lost data, by the teacher's batch norms: (N,); 0 is no distance."""

    def outliers(self) -> Tensor:
        """Return the images unlike anything that the teacher was trained on: (N,) bool; none in a clean pool."""

    def latest_predictions(self, teacher_weight: float, *, refreshed: float) -> Predictions:
        """Return the latest prediction for each image: from a step (`StepResult.predictions`) or a scan.

        Of the images that no step has seen since the last selection, the given share is evaluated anew, the least
        recently seen first. Images without a prediction are all evaluated.
        """


@dataclass(frozen=True)
class Parts:
    """All that a method is built from."""

    teacher: Teacher
    backbone: nn.Module  # the student's network: images (B, 3, H, W) -> logits (B, K)
    backbone_name: str
    sample: (
        Tensor  # (B, 3, H, W), normalised images of the pool: they show the shape and range of the teacher's features
    )
    inherited: bool = False  # whether the backbone has weights of the teacher


class Batch(NamedTuple):
    """The images of a step and all that belongs to them.

    A named tuple, not a dataclass: Fabric, DDP and CUDA graphs look for tensors in tuples, and Fabric refuses frozen
    dataclasses.
    """

    images: Tensor  # (B, 3, H, W), normalised and augmented
    generator: torch.Generator  # of all random numbers that the method draws; on the images' device
    teacher: ModelOutput | None = None  # the teacher's output for these images, if known already
    labels: Tensor | None = None  # (B,) int64, for methods that need them

    def split(self, size: int) -> Iterator[Batch]:
        """Yield parts of `size` images; the last may be smaller."""
        for start in range(0, len(self.images), size):
            here = slice(start, start + size)
            yield self._replace(
                images=self.images[here],
                teacher=None if self.teacher is None else ModelOutput(*(output[here] for output in self.teacher)),
                labels=None if self.labels is None else self.labels[here],
            )


class StepResult(NamedTuple):
    """The loss of one batch and its terms."""

    loss: Tensor  # (), to be differentiated
    terms: Mapping[str, Tensor]  # named, weighted parts of the loss; they sum to it
    predictions: Predictions | None = None  # of the batch, for a `select` that uses `latest_predictions`


class Method(nn.Module, abc.ABC):
    """The student and all other trained parts; the teacher is only read.

    A method never reads files, chooses devices or logs: the training loop does.
    """

    options: Any  # a subclass declares its own type of settings
    teacher: Teacher
    student: Student
    needs_labels = False  # of the pool's images, by the folders that they came from
    ranks: Ranks = ALONE  # processes whose parts make up a batch

    def __init__(self, options: Settings, teacher: Teacher, student: Student) -> None:
        super().__init__()
        self.options = options
        self.student = student
        # Not a submodule: the teacher is neither trained nor put into checkpoints.
        self.learn_from(teacher)

    @classmethod
    def build(cls, options: Any, parts: Parts) -> Method:
        """Return the method, ready to train; unless overridden, its student has its own classifier.

        Raises:
            KD3Error: teacher and student do not fit the method.
        """
        return cls(options, parts.teacher, student_with_its_own_classifier(parts))

    def learn_from(self, teacher: Teacher) -> None:
        """Replace the teacher by another form of it, such as one whose batch norms were fitted to the pool."""
        object.__setattr__(self, "teacher", teacher)

    @property
    def passes_per_selection(self) -> float:
        """Passes over the selected images before `select` is asked again."""
        return 1.0

    def hidden_matrices(self) -> list[Tensor]:
        """Return the weights that an optimizer for hidden matrices may move: see `kd3.models.head`.

        The layers that make the student's logits and a method's bare parameters are excluded.
        """
        return hidden_matrices(self, besides=self.student.output_layers())

    def moved_by_adam(self) -> list[Tensor]:
        """Return the parameters that Adam moves at its own rate, whichever optimizer moves the others."""
        return []

    def compares_images(self) -> str | None:
        """Return in words the loss terms that compare images, with a remedy; None: there are none."""
        return None

    @abc.abstractmethod
    def select(self, scan: Scan, progress: float, *, at_least: int) -> Selection:
        """Return the next images to train on, at least a batch; progress in [0, 1]."""

    @abc.abstractmethod
    def forward(self, batch: Batch) -> StepResult:
        """Return the loss of a batch.

        Each of several ranks has a part of the batch; the mean of their losses is the loss of the whole batch.
        """


def build_method(name: str, options: Settings, parts: Parts) -> Method:
    """Return a method by name, ready to train.

    Raises:
        KD3Error: there is no such method, or teacher and student do not fit it.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    module, _, attribute = METHODS[name].location.partition(":")
    method_class = getattr(import_module(module), attribute)
    method: Method = method_class.build(options, parts)
    return method


def student_with_its_own_classifier(parts: Parts) -> Student:
    """Return a student with its own classifier.

    Raises:
        KD3Error: its number of logits is not the number of classes.
    """
    return own_head(parts.backbone, parts.teacher.signature(), name=parts.backbone_name)


def student_with_teachers_classifier(
    parts: Parts, *, projector: Literal["auto", "simkd", "correction", "none"], projector_width: int | None
) -> Student:
    """Return a student with the teacher's classifier.

    Raises:
        KD3Error: the teacher's head cannot be shared, or the student's features cannot be found, or (without a
            projector) their channels differ from the teacher's.
    """
    teacher = parts.teacher
    kind = projector_for(parts) if projector == "auto" else projector
    features = teacher.outputs(parts.sample).features
    student = shared_head(
        parts.backbone,
        teacher.signature(),
        name=parts.backbone_name,
        classifier=teacher.classifier(),
        projector=kind,
        projector_width=projector_width,
        final_relu=never_negative(features),
        teacher_map=features.shape[2:],
    )
    if isinstance(student.projector, Correction):
        _fit_lift(student, student.projector, teacher, parts.sample)
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


def projector_for(parts: Parts) -> Literal["simkd", "correction", "none"]:
    """Return the projector for `auto`: randomly initialised only if nothing was inherited."""
    teacher = parts.teacher
    if not parts.inherited or teacher.head is None:
        return "simkd"
    assert teacher.input_size is not None
    try:
        channels = find_head(parts.backbone, teacher.input_size).channels
    except HeadNotFound:
        return "simkd"
    return "none" if channels == teacher.head.channels else "correction"


def never_negative(features: Tensor) -> bool:
    """Return whether the teacher's features come from a ReLU; only then may a projector end in one."""
    return bool((features >= 0).all())
