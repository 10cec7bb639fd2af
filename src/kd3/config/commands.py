"""Settings of the commands: one class per command. Free of torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from kd3.config.kinds import (
    LEAST_RECALLED,
    TRUST_CODE,
    WORKERS,
    Engine,
    Precision,
    PrivateHosts,
    Recall,
    TrustEntries,
    one_or_many,
    place_or_name,
    split_commas,
    split_semicolons,
)
from kd3.config.methods import METHODS, DFNDOptions, KD3Options, KDOptions, LabelsOptions, SimKDOptions
from kd3.config.settings import Count, Settings
from kd3.config.shrink import is_shrunk
from kd3.config.training import TrainSettings
from kd3.errors import unknown_name

KEEP_OUT = "test images of the student (folder, archive, ...; repeat it for more): images like one of them are not used"
CASCADE_IMAGES = 2000  # of a deployment
RECALLED_IMAGES, GIVEN_IMAGES = 64, 500  # defaults for the images that statistics are counted on


def unused_options(method: str, chosen: str) -> str:
    """Return the message for options of a method that is not chosen."""
    return f"options of method {method!r} have no effect with method {chosen!r}; leave them out, or choose {method!r}"


class DistillConfig(Settings):
    """Distil a teacher into a student on a pool of web images."""

    teacher: str = Field(
        description="teacher description (YAML): arch, weights, num_classes, mean, std, input_size; or timm:NAME, "
        "torchvision:NAME, hf:NAME_OR_FOLDER"
    )
    student: str = Field(
        description="student architecture: kd3:resnet20, timm:NAME, torchvision:NAME, hf:NAME_OR_FOLDER, "
        "path/to/net.py:build, package.module:build; or shrink:0.3, the teacher with that share of "
        "its multiply-adds (shrink:depth:0.3 and shrink:width:0.3 remove only blocks or only "
        "channels)"
    )
    student_args: dict[str, Any] = Field({}, description="arguments of the student's builder (YAML only)")
    student_output: Annotated[int | str | None, BeforeValidator(place_or_name)] = Field(
        None,
        description="place (0, 1, ...) or name of the student output that holds the logits (default: the first "
        "with one value per class)",
    )
    pool: str = Field(description="pool made by `kd3 ingest`")
    out: str = Field(description="run folder")
    method: str = Field("kd3", description="one of: " + ", ".join(METHODS))
    eval_data: str | None = Field(
        None,
        description="labelled images for an accuracy report at each evaluation; they choose nothing",
    )
    track: Annotated[list[Literal["tensorboard", "wandb", "mlflow", "none"]], BeforeValidator(split_commas)] = Field(
        ["tensorboard"],
        description="additional outputs for curves, separated by commas: tensorboard (files in the run folder), "
        "wandb, mlflow; or 'none'",
    )
    init: Literal["auto", "inherit", "random"] = Field(
        "auto",
        description="the student's first weights: 'inherit' takes them from the teacher wherever a part fits, "
        "'random' does not; 'auto' inherits with method kd3, if anything fits, and starts the other "
        "methods at random, as published",
    )
    inherit_blocks: Literal["even", "change", "recovery"] | None = Field(
        None,
        description="blocks that a shallower student inherits: 'even' spacing, those that 'change' their input "
        "most, or those whose removal allows the least 'recovery' (PRACTISE) (default: even; for a "
        "shrunk teacher: recovery)",
    )
    teacher_statistics: Literal["lost", "crawl", "blend", "auto"] | None = Field(
        None,
        description="batch-norm statistics of the teacher during training: 'lost' its own, 'crawl' the pool's, "
        "'blend' a mixture (--teacher-blend), 'auto' the most informative mixture (default: auto with "
        "method kd3, lost with the others)",
    )
    teacher_blend: float | None = Field(
        None, ge=0, le=1, description="with teacher_statistics 'blend': the pool's share b in the statistics"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of all random numbers")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    devices: int = Field(1, ge=1, description="processes on this machine, one per GPU; batches are divided among them")
    nodes: int = Field(1, ge=1, description="machines, each with that many processes; see docs/scale.md")
    precision: Precision = Field(
        "auto", description="auto means bfloat16 if the hardware supports it, else 32; 16 needs a GPU"
    )
    recall: Recall | None = Field(
        None,
        description="images to recall from the teacher at the end, for the student's batch norms: a number, "
        f"'off', or 'auto', {RECALLED_IMAGES} if both networks have batch norms (default: auto with "
        "method kd3, off with the others)",
    )
    deployment: str | None = Field(
        None,
        description="unlabelled images from the place where the student will work (a pool, or any source of kd3 "
        f"ingest), used instead of recalled images: at most {GIVEN_IMAGES}, or the number of --recall",
    )
    keep_out: Annotated[list[str], BeforeValidator(one_or_many)] = Field(
        [],
        description="test images of the student (folder, archive, ...; repeat it for more): the student's batch "
        "norms are counted on no image like one of them",
    )
    trust_entries: TrustEntries = False
    private_hosts: PrivateHosts = False
    train: TrainSettings = Field(TrainSettings(), description="training")
    kd3: KD3Options = Field(KD3Options(), description="options of method kd3")
    kd: KDOptions = Field(KDOptions(), description="options of method kd")
    dfnd: DFNDOptions = Field(DFNDOptions(), description="options of method dfnd")
    simkd: SimKDOptions = Field(SimKDOptions(), description="options of method simkd")
    labels: LabelsOptions = Field(LabelsOptions(), description="options of method labels")

    @model_validator(mode="after")
    def _one_kind_of_images(self) -> DistillConfig:
        if self.deployment is not None and self.recall == "off":
            raise ValueError("deployment images take the place of recalled ones; leave recall off out")
        return self

    @model_validator(mode="after")
    def _shrunk_teacher(self) -> DistillConfig:
        if is_shrunk(self.student):
            if self.init == "random":
                raise ValueError(f"{self.student} starts from the teacher's weights; leave init random out")
            if self.student_args:
                raise ValueError(f"{self.student} is the teacher's network; leave student_args out")
        return self

    @field_validator("method")
    @classmethod
    def _known_method(cls, name: str) -> str:
        if name not in METHODS:
            raise ValueError(str(unknown_name("method", name, METHODS)))
        return name

    @model_validator(mode="after")
    def _mixtures_that_mean_something(self) -> DistillConfig:
        if self.train.mixup and self.method == "labels":
            raise ValueError("mixup goes with a teacher, who says what a mixture is; method labels has none")
        if self.train.mixup and self.method == "kd3" and self.kd3.scoring == "training":
            raise ValueError("mixup goes with kd3.scoring fresh: what is predicted of a mixture is of no image")
        return self

    @model_validator(mode="after")
    def _blend_where_it_counts(self) -> DistillConfig:
        if (self.teacher_statistics == "blend") != (self.teacher_blend is not None):
            raise ValueError("teacher_blend goes with teacher_statistics 'blend', and 'blend' needs it")
        return self

    @model_validator(mode="after")
    def _options_of_the_method(self) -> DistillConfig:
        for name, entry in METHODS.items():
            if name != self.method and getattr(self, name) != entry.options():
                raise ValueError(unused_options(name, self.method))
        return self

    def settled(self) -> DistillConfig:
        """Return the settings with every choice resolved that follows from the method.

        By default KD3 inherits, fits its teacher and recalls, and the others run as published. A shrunk teacher
        inherits with any method.
        """
        ours = self.method == "kd3"
        shrunk = is_shrunk(self.student)
        init = "inherit" if shrunk else self.init if ours or self.init != "auto" else "random"
        statistics = self.teacher_statistics or ("auto" if ours else "lost")
        recall = self.recall or ("auto" if ours or self.deployment is not None else "off")
        blocks = self.inherit_blocks or ("recovery" if shrunk else "even")
        update: dict[str, Any] = {
            "init": init,
            "inherit_blocks": blocks,
            "teacher_statistics": statistics,
            "recall": recall,
        }
        if init == "random":
            update["train"] = self.train.settled(inherited=False)
            if isinstance(self.method_options, (KD3Options, SimKDOptions)) and self.method_options.projector == "auto":
                update[self.method] = self.method_options.model_copy(update={"projector": "simkd"})
        return self.model_copy(update=update)

    @property
    def trackers(self) -> list[str]:
        """The requested trackers."""
        return [name for name in dict.fromkeys(self.track) if name != "none"]

    @property
    def method_options(self) -> Settings:
        """The options of the chosen method."""
        options: Settings = getattr(self, self.method)
        return options


class AdaptConfig(Settings):
    """Count a finished student's batch norms again, on images recalled from the teacher or on your own."""

    run: str = Field(description="folder of a finished run")
    images: str | None = Field(
        None,
        description="unlabelled images from the place where the student will work: a pool, a folder, an archive, "
        "or any other source of kd3 ingest (default: images recalled from the teacher)",
    )
    count: Count | None = Field(
        None,
        ge=LEAST_RECALLED,
        description=f"images to recall (default: {RECALLED_IMAGES}), or the most to take of --images (default: "
        f"{GIVEN_IMAGES})",
    )
    keep_out: list[str] = Field(
        [],
        description=KEEP_OUT,
    )
    teacher: str | None = Field(None, description="the teacher, if it has moved since the run")
    pool: str | None = Field(None, description="the pool, if it has moved since the run")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the choice of images")
    trust_code: bool = Field(False, description=TRUST_CODE)
    trust_entries: TrustEntries = False
    private_hosts: PrivateHosts = False
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    workers: int | None = Field(None, ge=0, description=WORKERS)


class CascadeConfig(Settings):
    """Find the threshold below which a student should ask its teacher, and how often it asks."""

    run: str = Field(description="folder of a finished run")
    agreement: float = Field(
        98.0,
        gt=0,
        lt=100,
        description="target percentage of images on which student and teacher together give the teacher's class; "
        "95, 98 and 99 are reported too",
    )
    confidence: float = Field(
        95.0,
        ge=50,
        lt=100,
        description="confidence of the promise, in percent: the share of samples of images in which such a "
        "threshold keeps it",
    )
    deployment: str | None = Field(
        None,
        description="unlabelled images from the place where the student will work: a pool, a folder, an archive, "
        "or any other source of kd3 ingest (default: the images that the run held out of its pool)",
    )
    count: Count | None = Field(
        None,
        ge=LEAST_RECALLED,
        description=f"most images to take (default: all held-out ones, or {CASCADE_IMAGES:,} of --deployment)",
    )
    keep_out: list[str] = Field(
        [],
        description=KEEP_OUT,
    )
    teacher: str | None = Field(None, description="the teacher, if it has moved since the run")
    pool: str | None = Field(None, description="the pool, if it has moved since the run")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the choice of images")
    trust_code: bool = Field(False, description=TRUST_CODE)
    trust_entries: TrustEntries = False
    private_hosts: PrivateHosts = False
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    workers: int | None = Field(None, ge=0, description=WORKERS)


class EvaluateConfig(Settings):
    """Measure a model on labelled images, and its agreement with the teacher."""

    model: str = Field(description="run folder, student/ folder, or teacher description")
    data: str = Field(description="one folder of images per class, or labelled data; see docs/labels.md")
    teacher: str | None = Field(
        None, description="teacher description: adds its accuracy, the difference and the agreement"
    )
    out: str | None = Field(
        None,
        description="with --teacher: an HTML file about the lost accuracy: both networks by class, images that "
        "only the teacher gets right, calibration",
    )
    trust_code: bool = Field(False, description=TRUST_CODE)
    trust_entries: TrustEntries = False
    private_hosts: PrivateHosts = False
    batch_size: int = Field(256, ge=1, description="images per forward pass")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    precision: Precision = Field("32", description="32 by default, so that figures compare across machines")
    leak_check: bool = Field(
        True, description="for a run's student: check whether its pool holds these images, and warn if it does"
    )
    workers: int | None = Field(None, ge=0, description=WORKERS)

    @model_validator(mode="after")
    def _a_page_of_two(self) -> EvaluateConfig:
        if self.out is not None and self.teacher is None:
            raise ValueError("out is a page of what was lost beside the teacher; add teacher")
        return self


class ClassesConfig(Settings):
    """Show or set the class names of a student, without training again."""

    model: str = Field(description="finished run, or a student/ folder")
    names: str | None = Field(
        None,
        description="names in the order of the logits: a teacher description with 'classes', a text file with one "
        "name per line, or the names separated by commas",
    )


class PredictConfig(Settings):
    """Classify images."""

    model: str = Field(description="run folder, student/ folder, or teacher description")
    images: Annotated[list[str], BeforeValidator(one_or_many)] = Field(
        min_length=1, description="image files, folders, tar or zip files"
    )
    top: int = Field(3, ge=1, description="classes to show per image")
    trust_code: bool = Field(False, description=TRUST_CODE)
    trust_entries: TrustEntries = False
    private_hosts: PrivateHosts = False
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")


class ExportConfig(Settings):
    """Write a student in formats that run without kd3, each checked against the student."""

    run: str = Field(description="finished run, or a student/ folder")
    out: str = Field(description="folder to write; must be absent or empty")
    format: Annotated[
        list[Literal["onnx", "torch-export", "torchscript", "safetensors"]], BeforeValidator(split_commas)
    ] = Field(
        ["onnx"], min_length=1, description="onnx, torch-export, torchscript, safetensors; several separated by commas"
    )
    preprocessing: Literal["inside", "outside"] = Field(
        "inside",
        description="'inside': the graph takes uint8 RGB and normalises it, which rules out mistakes; 'outside': "
        "it takes normalised floats",
    )
    opset: int | None = Field(
        None,
        ge=11,
        le=30,
        description="version of ONNX's operators (default: 17 with IR 8, readable by onnxruntime since 1.12, or "
        "the version that the network needs)",
    )
    int8: bool = Field(
        False,
        description="also write an ONNX file in 8 bits, calibrated on web images; the best of four ways by agreement",
    )
    min_agreement: float = Field(
        95.0,
        ge=0,
        le=100,
        description="write nothing if the 8-bit file agrees with the student on less than this percentage of images",
    )
    images: str | None = Field(
        None,
        description="images for the comparison: a pool, or any source of kd3 ingest (default: held-out images of "
        "the run's pool); 'none': noise",
    )
    check_images: Count = Field(1000, ge=2, description="number of images for the comparison")
    calibration_images: Count = Field(512, ge=2, description="images of the last selection that calibrate 8 bits")
    teacher: str | None = Field(None, description="teacher description: adds each file's agreement with it")
    trust_code: bool = Field(False, description=TRUST_CODE)
    trust_entries: TrustEntries = False
    private_hosts: PrivateHosts = False
    threads: int = Field(1, ge=1, description="CPU threads for the timing of each file")

    @model_validator(mode="after")
    def _eight_bits_of_onnx(self) -> ExportConfig:
        if self.int8 and "onnx" not in self.format:
            raise ValueError("int8 is made from ONNX; add onnx to format")
        return self


class ReportConfig(Settings):
    """Write one HTML file about a run, or a comparison of several."""

    runs: Annotated[list[str], BeforeValidator(one_or_many)] = Field(
        min_length=1, description="folders of finished runs"
    )
    out: str | None = Field(None, description="file to write (default: report.html in the folder of the first run)")
    teacher: str | None = Field(None, description="the teacher, if it has moved since the run")
    pool: str | None = Field(None, description="the pool, if it has moved since the run")
    data: str | None = Field(
        None,
        description="labelled images for a section on the lost accuracy: both networks by class, images that only "
        "the teacher gets right, calibration (one run only)",
    )
    images: Count = Field(
        1000, ge=0, description="pool images for pictures, map and shift, seen by both networks; 0: none"
    )
    latency: bool = Field(True, description="measure the latency of teacher and student on this machine's CPU")
    trust_code: bool = Field(False, description=TRUST_CODE)
    trust_entries: TrustEntries = False
    private_hosts: PrivateHosts = False
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N, for the pool images")

    @model_validator(mode="after")
    def _data_of_one(self) -> ReportConfig:
        if self.data is not None and len(self.runs) > 1:
            raise ValueError("data goes with one run; kd3 evaluate compares each of several")
        return self


class InspectConfig(Settings):
    """Show a teacher's classifier, features, shapes, parameters and normalisation."""

    teacher: str = Field(description="teacher description (YAML), or timm:NAME, torchvision:NAME, hf:NAME_OR_FOLDER")
    pool: str | None = Field(
        None, description="pool made by `kd3 ingest`: checks whether mean, std and colour order fit the teacher"
    )
    student: str | None = Field(
        None,
        description="student architecture: shows part by part which weights it would inherit from the teacher; "
        "for shrink:0.3, the removed parts",
    )


class MethodsConfig(Settings):
    """List the distillation methods."""


class SchemaConfig(Settings):
    """Print the JSON schema of a file, for completion and checks in editors."""

    file: Literal["distill", "teacher", "study"] = Field(
        description="distill: a file for --config; teacher: a teacher's description; study: a study of your own"
    )


class CompletionConfig(Settings):
    """Print the shell code that completes the commands and flags of kd3."""

    shell: Literal["bash", "zsh", "tcsh"] = Field(description="the shell")


class StudyConfig(Settings):
    """Run a grid of distillations at an equal budget and compare them in a table."""

    study: str = Field(description="name of a study that comes with kd3, or your own YAML file")
    out: str = Field(description="folder of the study; run again to continue")
    teacher: str = Field(description="teacher description (YAML)")
    student: str = Field(description="student architecture, as for kd3 distill")
    pool: str = Field(description="pool of the crawl, made by `kd3 ingest`")
    original: str | None = Field(None, description="pool of the original data, for rows that are upper bounds")
    other: Annotated[list[str], BeforeValidator(split_commas)] = Field(
        [],
        description="pools of other kinds of images (off-topic, another style): POOL, for rows that mix it in, "
        "and NAME=POOL for each pool that the study names; separated by commas",
    )
    eval_data: str | None = Field(None, description="labelled images for an accuracy report; they choose nothing")
    trust_entries: TrustEntries = False
    private_hosts: PrivateHosts = False
    images: Count | None = Field(None, ge=1, description="training images of each run (default: the study's)")
    fixed_views: int | None = Field(
        None,
        ge=0,
        le=1000,
        description="as for kd3 distill: runs on one pool then share the teacher's features (default: the study's)",
    )
    looks: int | None = Field(None, ge=1, description="as for kd3 distill (default: the study's)")
    flip: bool | None = Field(None, description="true or false, as for kd3 distill (default: the study's)")
    seeds: Annotated[list[int], BeforeValidator(split_commas)] = Field(
        [], description="seeds of every row, separated by commas (default: the study's)"
    )
    rows: Annotated[list[str], BeforeValidator(split_semicolons)] = Field(
        [], description="only these rows or series, separated by semicolons"
    )
    known: Annotated[list[str], BeforeValidator(split_commas)] = Field(
        [],
        description="results.json of this study from another machine or an earlier day, separated by commas: runs "
        "with the same settings, teacher and pool are not repeated",
    )
    jobs: int = Field(1, ge=1, description="runs at the same time; they share the devices")
    devices: Annotated[list[str], BeforeValidator(split_commas)] = Field(
        [], description="devices that take turns, separated by commas, such as cuda:0,cuda:1 (default: --device)"
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    precision: Precision = Field("auto", description="as for kd3 distill")
    engine: Engine = Field(
        "local",
        description="'ray': on a Ray cluster (RAY_ADDRESS), with one core per run and a GPU if there is one",
    )
    dry_run: bool = Field(False, description="list the runs, and run nothing")


class DemoConfig(Settings):
    """Run the whole job on generated data: no download, no GPU."""

    out: str = Field("demo", description="folder for everything the demo makes")
    images: Count = Field(
        6_000, ge=256, description="training images of each of the two runs; with 20k plain KD catches up here"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of all random numbers")
