"""What each command is told: one settings class a command. Free of torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from kd3.config.methods import METHODS, KD3Options, KDOptions
from kd3.config.settings import Count, Settings
from kd3.errors import unknown_name

Precision = Literal["auto", "32", "bf16", "16"]
DEFAULT_IMAGES = 200_000


def _split_commas(value: Any) -> Any:
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


class IngestConfig(Settings):
    """Make a pool of equal-sized images from a crawl."""

    sources: list[str] = Field(
        min_length=1, description="folders, tar shards or zip files; globs and {00000..00010} braces work"
    )
    out: str = Field(description="folder of the pool; made if absent, continued if interrupted")
    image_size: int = Field(
        ge=8, le=1024, description="side of the images in the pool, in pixels: the teacher's input size"
    )
    fit: Literal["crop", "squash"] = Field(
        "crop",
        description="'crop': shorter side to size, then the centre; 'squash': the whole image, distorted",
    )
    min_side: int = Field(16, ge=1, description="refuse images with a shorter side than this, in pixels")
    max_pixels: Count = Field(100_000_000, ge=1, description="refuse images with more pixels than this, undecoded")
    workers: int | None = Field(None, ge=0, description="decoding processes (default: one a core; 0: none)")
    limit: Count | None = Field(None, ge=1, description="stop after this many files")


class TrainSettings(Settings):
    """The training loop: budget, optimiser, schedule, augmentation."""

    images: Count | None = Field(
        None,
        ge=1,
        description=f"budget in training images, such as 200k or 1.5M (default: {DEFAULT_IMAGES // 1000}k)",
    )
    epochs: float | None = Field(
        None,
        gt=0,
        description="budget in pool sizes instead: E epochs are E times the pool's training images",
    )
    batch_size: int = Field(128, ge=2, description="images per step")
    lr: float = Field(0.1, gt=0, description="peak learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    nesterov: bool = Field(True, description="Nesterov's form of momentum")
    weight_decay: float = Field(5e-4, ge=0, description="weight decay")
    schedule: Literal["cosine", "step"] = Field(
        "cosine", description="'cosine' falls to 0 over the budget; 'step' divides by 10 at each milestone"
    )
    milestones: Annotated[list[float], BeforeValidator(_split_commas)] = Field(
        [0.625, 0.75, 0.875], description="of 'step': parts of the budget, comma separated"
    )
    warmup_steps: int = Field(50, ge=0, description="steps over which the learning rate rises from 0")
    augmentation: Literal["crop", "resized-crop", "none"] = Field(
        "crop",
        description="'crop' shifts by up to an eighth of the side; 'resized-crop' (paper) zooms in",
    )
    flip: bool = Field(True, description="mirror half of the images; switch it off where left and right matter")
    fixed_views: int = Field(
        0,
        ge=0,
        le=1000,
        description="draw each image's views from this many fixed ones and keep the teacher's features of them beside "
        "the pool, so that it runs once for each: much disk, fewer teacher passes; 0: a new view each time",
    )
    holdout: int = Field(1000, ge=2, description="pool images never trained on, for the agreement with the teacher")
    fold_batch_norms: bool = Field(
        False,
        description="merge batch norms into convolutions where networks only run forward (teacher, scoring): up to a "
        "tenth faster on a CPU, with other rounding",
    )
    compile_teacher: bool = Field(
        False,
        description="compile the teacher before the first step: up to a minute, then faster steps; for long runs",
    )
    checkpoint_minutes: float = Field(5.0, gt=0, description="save a checkpoint at least this often")

    @model_validator(mode="after")
    def _views_that_can_be_fixed(self) -> TrainSettings:
        if self.fixed_views and self.augmentation != "crop":
            raise ValueError(f"fixed_views goes with augmentation crop, not {self.augmentation}")
        return self

    @model_validator(mode="after")
    def _one_budget(self) -> TrainSettings:
        if self.images is not None and self.epochs is not None:
            raise ValueError("give the budget as images or as epochs, not both")
        return self


class DistillConfig(Settings):
    """Distil a teacher into a student on a pool of web images."""

    teacher: str = Field(description="teacher description (YAML): arch, weights, num_classes, mean, std, input_size")
    student: str = Field(description="student architecture: kd3:resnet20, path/to/net.py:build or package.module:build")
    student_args: dict[str, Any] = Field({}, description="arguments of the student's builder (YAML only)")
    pool: str = Field(description="pool made by `kd3 ingest`")
    out: str = Field(description="folder of the run")
    method: str = Field("kd3", description="one of: " + ", ".join(METHODS))
    eval_data: str | None = Field(
        None,
        description="labelled images to report accuracy on, after rounds (some 50 times at most); they choose nothing",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of everything random")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    precision: Precision = Field(
        "auto", description="auto takes bfloat16 where the hardware has it, else 32; 16 needs a GPU"
    )
    train: TrainSettings = Field(TrainSettings(), description="training")
    kd3: KD3Options = Field(KD3Options(), description="options of method kd3")
    kd: KDOptions = Field(KDOptions(), description="options of method kd")

    @field_validator("method")
    @classmethod
    def _known_method(cls, name: str) -> str:
        if name not in METHODS:
            raise ValueError(str(unknown_name("method", name, METHODS)))
        return name

    @property
    def method_options(self) -> Settings:
        """The options of the chosen method."""
        options: Settings = getattr(self, self.method)
        return options


class EvaluateConfig(Settings):
    """Measure a model on labelled images, and its agreement with the teacher."""

    model: str = Field(description="run folder, student/ folder, or teacher description")
    data: str = Field(description="folder, zip or tar with one folder of images per class")
    teacher: str | None = Field(None, description="teacher description: adds the agreement with it")
    batch_size: int = Field(256, ge=1, description="images per forward pass")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    precision: Precision = Field("32", description="32 by default, so that figures compare across machines")
    workers: int | None = Field(None, ge=0, description="decoding processes (default: one a core; 0: none)")


class PredictConfig(Settings):
    """Classify images."""

    model: str = Field(description="run folder, student/ folder, or teacher description")
    images: list[str] = Field(min_length=1, description="image files, folders, tar or zip files")
    top: int = Field(3, ge=1, description="classes to show per image")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")


class InspectConfig(Settings):
    """Show what was found in a teacher: classifier, features, shapes, parameters."""

    teacher: str = Field(description="teacher description (YAML)")


class DemoConfig(Settings):
    """Run the whole job on data made on this machine: no download, no GPU."""

    out: str = Field("demo", description="folder for everything the demo makes")
    images: Count = Field(
        20_000, ge=256, description="training images of each of the two runs; with 60k plain KD catches up here"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of everything random")
