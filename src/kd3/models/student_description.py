"""Contents of `config.json` in a student's folder, checked before anything is built from them. Free of torch."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from kd3.config.settings import Settings
from kd3.models.shrink_plan import ShrinkPlan

CHANNELS = 1 << 16  # more than any network has; the weights must hold them anyway
CLASSES = 1 << 20


class _Part(Settings):
    """A group of settings; names from later versions are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)


class HeadDescription(_Part):
    """Places of the backbone's classifier and features."""

    classifier: str
    features: str | None
    side: Literal["output", "input"]
    relu: bool
    channels: int = Field(ge=1, le=CHANNELS)
    num_classes: int = Field(ge=1, le=CLASSES)


class ClassifierDescription(_Part):
    """The classifier that was the teacher's."""

    in_features: int = Field(ge=1, le=CHANNELS)
    out_features: int = Field(ge=1, le=CLASSES)
    bias: bool


class CallingDescription(_Part):
    """Calling convention of the network; see `kd3.models.calling.Calling`."""

    channels: Literal[1, 3] = 3
    grey_thrice: bool = False
    contiguous: bool = False
    output: int | str | None = None
    one_logit: bool = False


class ThresholdDescription(_Part):
    """One of several thresholds; see `kd3.measure.cascade.Threshold`."""

    agreement: float = Field(gt=0, lt=100)
    margin: float | None
    escalated: float
    reached: float
    problem: str


class CascadeDescription(_Part):
    """Calibration of the student, and the threshold for asking the teacher; see `kd3.commands.cascade`."""

    weights: str  # hash of the measured weights
    teacher: str
    temperature: float = Field(gt=0, le=1e6)
    threshold: float = Field(ge=0, le=1e6)
    agreement: float = Field(gt=0, lt=100)
    confidence: float = Field(ge=50, lt=100)
    images: int = Field(ge=1)
    of: Literal["held out", "deployment"]
    where: str
    agreement_alone: float
    calibration_error: dict[Literal["as trained", "scaled"], float] = Field(min_length=2)
    thresholds: list[ThresholdDescription]


class StudentDescription(_Part):
    """A student."""

    arch: str | None
    arch_args: dict[str, Any]
    num_classes: int = Field(ge=1, le=CLASSES)
    classes: list[str] = Field(min_length=1)
    mean: list[float]
    std: list[float]
    input_size: int = Field(ge=1, le=4096)
    head: HeadDescription | None
    projector: dict[str, Any] | None  # its kind checks the names
    classifier: ClassifierDescription | None
    calling: CallingDescription = CallingDescription()
    shrunk: ShrinkPlan | None = None
    cascade: CascadeDescription | None = None

    @field_validator("projector")
    @classmethod
    def _sizes(cls, values: dict[str, Any] | None) -> dict[str, Any] | None:
        for name, value in (values or {}).items():
            if isinstance(value, int) and not 0 <= value <= CHANNELS:
                raise ValueError(f"{name[:80]} must be from 0 to {CHANNELS:,}")
        return values

    @field_validator("std")
    @classmethod
    def _positive(cls, values: list[float]) -> list[float]:
        if not all(value > 0 for value in values):
            raise ValueError("must be greater than 0 in every channel")
        return values

    @model_validator(mode="after")
    def _belongs_together(self) -> StudentDescription:
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise ValueError("mean and std must have a value for each channel")
        if len(self.classes) != self.num_classes:
            raise ValueError(f"classes lists {len(self.classes):,} names but num_classes is {self.num_classes:,}")
        if len(set(self.classes)) != len(self.classes):
            twice = Counter(self.classes).most_common(1)[0][0]
            raise ValueError(f"classes lists {twice[:80]!r} more than once")
        if self.classifier is not None and self.head is None:
            raise ValueError("a classifier of its own needs the backbone's head")
        return self
