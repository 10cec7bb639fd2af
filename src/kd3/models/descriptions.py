"""The small files that describe a teacher and a student's folder, checked before anything is built. Free of torch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from kd3.config.records import Fit, class_name
from kd3.config.run_records import About
from kd3.config.settings import Settings, build, read_yaml
from kd3.config.shrink import ShrinkPlan


class TeacherDescription(Settings):
    """A trained classifier: architecture, weights and input requirements."""

    arch: str = Field(
        description="kd3:NAME, timm:NAME, torchvision:NAME, hf:NAME_OR_FOLDER, torchscript:FILE, torch-export:FILE, "
        "path/to/net.py:function or package.module:function"
    )
    arch_args: dict[str, Any] = Field({}, description="arguments of the builder")
    weights: str | None = Field(
        None,
        description=".pt, .pth, .th or .safetensors file, relative to the description; 'pretrained': those that timm "
        "or torchvision has itself; left out: those that arch itself names (hf, torchscript, torch-export)",
    )
    trusted: bool = Field(
        False, description="the checkpoint comes from someone trusted: run the Python code that its pickle may hold"
    )
    weights_key: str | None = Field(
        None, description="name under which the file of weights holds those that are meant (state_dict_ema)"
    )
    prefix: str | None = Field(
        None, description="of the network's names in the file of weights, where it holds others, too (student.)"
    )
    num_classes: int = Field(
        ge=2,
        description="number of classes; 2 for a network with one logit z, which stands for (0, z); left out: as many "
        "as classes names",
    )
    output: int | str | None = Field(
        None, description="which output holds the logits, by place (0, 1, ...) or name, where the network has several"
    )
    mean: list[float] = Field(description="per channel, of RGB in [0, 1]; one value: the teacher takes grey images")
    std: list[float] = Field(description="per channel, of RGB in [0, 1]; one value for grey images")
    colours: Literal["rgb", "bgr"] = Field(
        "rgb",
        description="order of the channels that the network was trained on; bgr (OpenCV): its first layer is turned, "
        "and all else, mean and std too, is in the order R, G, B",
    )
    input_size: int = Field(ge=8, le=1024, description="side of the input, in pixels")
    fit: Fit | None = Field(
        None,
        description="how pictures become squares: crop (the shorter side to size, then the centre) or squash (the "
        "whole picture, distorted); left out: as the pool has them, and crop where there is none",
    )
    classes: list[str] | None = Field(None, description="class names, in the order of the logits")

    @model_validator(mode="before")
    @classmethod
    def _as_many_as_names(cls, values: Any) -> Any:
        names = values.get("classes") if isinstance(values, dict) else None
        return {"num_classes": len(names), **values} if isinstance(names, list) else values

    @field_validator("classes", mode="before")
    @classmethod
    def _names_are_text(cls, names: Any) -> Any:
        # They may be numbers from Python or JSON; `read_yaml` keeps their spelling.
        return [name if name is None else class_name(name) for name in names] if isinstance(names, list) else names

    @field_validator("mean", "std")
    @classmethod
    def _three_channels_or_one(cls, values: list[float]) -> list[float]:
        if len(values) not in (1, 3):
            raise ValueError(
                f"must have three values, one a channel (R, G, B), or one for grey images, not {len(values)}"
            )
        return values

    @field_validator("std")
    @classmethod
    def _positive(cls, values: list[float]) -> list[float]:
        if min(values) <= 0:
            raise ValueError("must be greater than 0 in every channel")
        return values

    @model_validator(mode="after")
    def _as_many_channels(self) -> TeacherDescription:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean and std must have as many values, and have {len(self.mean)} and {len(self.std)}")
        if self.colours == "bgr" and len(self.mean) == 1:
            raise ValueError("colours: bgr is for three channels, and this teacher takes grey images")
        return self

    @model_validator(mode="after")
    def _one_scale(self) -> TeacherDescription:
        if max(self.mean) > 2 or max(self.std) > 2:
            raise ValueError(
                "mean and std are for RGB in [0, 1]; these look like values for 0 to 255: divide them by 255"
            )
        if self.classes is not None and len(self.classes) != self.num_classes:
            raise ValueError(f"classes lists {len(self.classes)} names but num_classes is {self.num_classes}")
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise ValueError(f"classes lists {twice!r} more than once")
        return self


def read_description(path: Path) -> TeacherDescription:
    """Return a complete teacher description.

    Raises:
        KD3Error: the file is missing, not YAML, or a setting in it is missing, unknown or wrong.
    """
    return build(TeacherDescription, read_yaml(path, what="teacher description"), where=str(path))


CHANNELS = 1 << 16  # more than any network has; the weights must hold them anyway
CLASSES = 1 << 20
LARGEST = 1e4  # mean, and 1 / std: beyond it float32 overflows sooner or later


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
    """One of several thresholds; see `kd3.evaluation.cascade.Threshold`."""

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
    about: About = About()

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
    def _of_a_scale(self) -> StudentDescription:
        if max(map(abs, self.mean), default=0) > LARGEST or not all(value >= 1 / LARGEST for value in self.std):
            raise ValueError("mean and std must be of the scale of RGB in [0, 1]")
        return self

    @model_validator(mode="after")
    def _belongs_together(self) -> StudentDescription:
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise ValueError("mean and std must have a value for each channel")
        if len(self.classes) != self.num_classes:
            raise ValueError(f"classes lists {len(self.classes):,} names but num_classes is {self.num_classes:,}")
        twice, times = Counter(map(class_name, self.classes)).most_common(1)[0]
        if times > 1:
            raise ValueError(f"classes lists {twice[:80]!r} more than once")
        if self.classifier is not None and self.head is None:
            raise ValueError("a classifier of its own needs the backbone's head")
        return self
