"""What each command is told: one settings class a command. Free of torch."""

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

KEEP_OUT = (
    "images that the student will be tested on (folder, archive, ...; repeat it for more): what is like one of them is "
    "not used"
)
CASCADE_IMAGES = 2000  # of a deployment
RECALLED_IMAGES, GIVEN_IMAGES = 64, 500  # that statistics are counted on, unless the user says how many


def unused_options(method: str, chosen: str) -> str:
    """Say that a method's options are given and another one is chosen."""
    return f"options of method {method!r} have no effect with method {chosen!r}; leave them out, or choose {method!r}"


class DistillConfig(Settings):
    """Distil a teacher into a student on a pool of web images."""

    teacher: str = Field(
        description="teacher description (YAML): arch, weights, num_classes, mean, std, input_size; or timm:NAME, "
        "torchvision:NAME, hf:NAME_OR_FOLDER"
    )
    student: str = Field(
        description="student architecture: kd3:resnet20, timm:NAME, torchvision:NAME, hf:NAME_OR_FOLDER, "
        "path/to/net.py:build, package.module:build, or shrink:0.3, the teacher with that share of its multiply-adds "
        "(shrink:depth:0.3: by leaving out blocks only, shrink:width:0.3: channels only)"
    )
    student_args: dict[str, Any] = Field({}, description="arguments of the student's builder (YAML only)")
    student_output: Annotated[int | str | None, BeforeValidator(place_or_name)] = Field(
        None,
        description="which of the student's outputs holds its logits, by place (0, 1, ...) or name (default: the first "
        "with a value for each class)",
    )
    pool: str = Field(description="pool made by `kd3 ingest`")
    out: str = Field(description="folder of the run")
    method: str = Field("kd3", description="one of: " + ", ".join(METHODS))
    eval_data: str | None = Field(
        None,
        description="labelled images to report accuracy on, with each look at the held-out images; they choose nothing",
    )
    track: Annotated[list[Literal["tensorboard", "wandb", "mlflow", "none"]], BeforeValidator(split_commas)] = Field(
        ["tensorboard"],
        description="where curves go, too: tensorboard (files in the run folder), wandb, mlflow, by commas; or 'none'",
    )
    init: Literal["auto", "inherit", "random"] = Field(
        "auto",
        description="the student's first weights: 'inherit' takes them from the teacher wherever a part fits, 'random' "
        "does not; 'auto' inherits with method kd3, if anything fits, and starts the other methods at random, as "
        "published",
    )
    inherit_blocks: Literal["even", "change", "recovery"] | None = Field(
        None,
        description="which of the teacher's blocks a shallower student inherits: 'even' spacing, those that 'change' "
        "their input most, or those whose removal allows the least 'recovery' (PRACTISE) (default: even; of a shrunk "
        "teacher: recovery)",
    )
    teacher_statistics: Literal["lost", "crawl", "blend", "auto"] | None = Field(
        None,
        description="batch-norm statistics of the teacher that the student learns from: 'lost' its own, 'crawl' "
        "those of the pool, 'blend' a mixture (--teacher-blend), 'auto' the mixture that makes its answers on the pool "
        "most informative (default: auto with method kd3, lost with the others)",
    )
    teacher_blend: float | None = Field(
        None, ge=0, le=1, description="with teacher_statistics 'blend': the pool's share b in the statistics"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of everything random")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    devices: int = Field(1, ge=1, description="processes on this machine, a GPU each; batches are divided among them")
    nodes: int = Field(1, ge=1, description="machines, with so many processes each; see docs/scale.md")
    precision: Precision = Field(
        "auto", description="auto takes bfloat16 where the hardware has it, else 32; 16 needs a GPU"
    )
    recall: Recall | None = Field(
        None,
        description="images to recall from the teacher at the end, on which the student's batch norms are counted "
        f"again: a number, 'off', or 'auto', {RECALLED_IMAGES} where both networks have batch norms (default: auto "
        "with method kd3, off with the others)",
    )
    deployment: str | None = Field(
        None,
        description="unlabelled images from where the student will work (a pool, or what kd3 ingest reads), to take "
        f"in place of recalled ones: {GIVEN_IMAGES} at most, or as many as recall says",
    )
    keep_out: Annotated[list[str], BeforeValidator(one_or_many)] = Field(
        [],
        description="images that the student will be tested on (folder, archive, ...; repeat it for more): its batch "
        "norms are counted on none that is like one of them",
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
        """Return the settings with every choice made that follows from the method alone.

        KD3 inherits, fits its teacher and recalls; the others run as published, unless asked. A shrunk teacher inherits
        with any method.
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
        """The trackers asked for."""
        return [name for name in dict.fromkeys(self.track) if name != "none"]

    @property
    def method_options(self) -> Settings:
        """The options of the chosen method."""
        options: Settings = getattr(self, self.method)
        return options


class AdaptConfig(Settings):
    """Count a finished student's batch norms again, on images recalled from the teacher or on images of yours."""

    run: str = Field(description="folder of a finished run")
    images: str | None = Field(
        None,
        description="unlabelled images from where the student will work: a pool, a folder, an archive, or what else "
        "kd3 ingest reads (default: images recalled from the teacher)",
    )
    count: Count | None = Field(
        None,
        ge=LEAST_RECALLED,
        description=f"images to recall (default: {RECALLED_IMAGES}), or to take of --images where there are more "
        f"(default: {GIVEN_IMAGES})",
    )
    keep_out: list[str] = Field(
        [],
        description=KEEP_OUT,
    )
    teacher: str | None = Field(None, description="the teacher, where it is no longer where the run found it")
    pool: str | None = Field(None, description="the pool, where it is no longer where the run found it")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the choice of images")
    trust_code: bool = Field(False, description=TRUST_CODE)
    trust_entries: TrustEntries = False
    private_hosts: PrivateHosts = False
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    workers: int | None = Field(None, ge=0, description=WORKERS)


class CascadeConfig(Settings):
    """Find out when a student is to ask its teacher: a threshold, and how often it is asked."""

    run: str = Field(description="folder of a finished run")
    agreement: float = Field(
        98.0,
        gt=0,
        lt=100,
        description="percentage of images on which the cascade of student and teacher is to give the teacher's class; "
        "95, 98 and 99 are looked at too",
    )
    confidence: float = Field(
        95.0,
        ge=50,
        lt=100,
        description="how sure the promise is, in percent: how often such a threshold keeps it, over samples of images",
    )
    deployment: str | None = Field(
        None,
        description="unlabelled images from where the student will work: a pool, a folder, an archive, or what else "
        "kd3 ingest reads (default: those that the run held out of its pool)",
    )
    count: Count | None = Field(
        None,
        ge=LEAST_RECALLED,
        description=f"images to take at most (default: all held-out ones, or {CASCADE_IMAGES:,} of --deployment)",
    )
    keep_out: list[str] = Field(
        [],
        description=KEEP_OUT,
    )
    teacher: str | None = Field(None, description="the teacher, where it is no longer where the run found it")
    pool: str | None = Field(None, description="the pool, where it is no longer where the run found it")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the choice of images")
    trust_code: bool = Field(False, description=TRUST_CODE)
    trust_entries: TrustEntries = False
    private_hosts: PrivateHosts = False
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    workers: int | None = Field(None, ge=0, description=WORKERS)


class EvaluateConfig(Settings):
    """Measure a model on labelled images, and its agreement with the teacher."""

    model: str = Field(description="run folder, student/ folder, or teacher description")
    data: str = Field(description="one folder of images per class, or data that carry labels; see docs/labels.md")
    teacher: str | None = Field(
        None, description="teacher description: adds its accuracy, the difference and the agreement"
    )
    out: str | None = Field(
        None,
        description="with --teacher: an HTML file of what was lost: both networks by class, images that only the "
        "teacher gets right, calibration",
    )
    trust_code: bool = Field(False, description=TRUST_CODE)
    trust_entries: TrustEntries = False
    private_hosts: PrivateHosts = False
    batch_size: int = Field(256, ge=1, description="images per forward pass")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    precision: Precision = Field("32", description="32 by default, so that figures compare across machines")
    leak_check: bool = Field(
        True, description="of a run's student: look whether its pool holds these images, and warn where it does"
    )
    workers: int | None = Field(None, ge=0, description=WORKERS)

    @model_validator(mode="after")
    def _a_page_of_two(self) -> EvaluateConfig:
        if self.out is not None and self.teacher is None:
            raise ValueError("out is a page of what was lost beside the teacher; add teacher")
        return self


class ClassesConfig(Settings):
    """Show the names of a student's classes, or give it names, without training again."""

    model: str = Field(description="finished run, or a student/ folder")
    names: str | None = Field(
        None,
        description="names in the order of the logits: a teacher description with 'classes', a text file with one a "
        "line, or the names themselves with commas between them",
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
    """Write a student in forms that run without kd3, each compared with it first."""

    run: str = Field(description="finished run, or a student/ folder")
    out: str = Field(description="folder to write; must be absent or empty")
    format: Annotated[
        list[Literal["onnx", "torch-export", "torchscript", "safetensors"]], BeforeValidator(split_commas)
    ] = Field(["onnx"], min_length=1, description="onnx, torch-export, torchscript, safetensors; several by commas")
    preprocessing: Literal["inside", "outside"] = Field(
        "inside",
        description="'inside': the graph takes uint8 RGB and normalises itself, so that nobody can do it wrong; "
        "'outside': it takes normalised floats",
    )
    opset: int | None = Field(
        None,
        ge=11,
        le=30,
        description="version of ONNX's operators (default: 17 with IR 8, which onnxruntime reads since 1.12, or what "
        "the network needs)",
    )
    int8: bool = Field(
        False, description="an ONNX file in 8 bits too, calibrated on web images; the best of four ways by agreement"
    )
    min_agreement: float = Field(
        95.0,
        ge=0,
        le=100,
        description="write nothing if the 8-bit file says what the student says on less than this percentage of images",
    )
    images: str | None = Field(
        None,
        description="pool, or images of any kind that kd3 ingest reads, to compare on (default: held-out images of the "
        "run's pool); 'none': on noise",
    )
    check_images: Count = Field(1000, ge=2, description="images to compare on")
    calibration_images: Count = Field(512, ge=2, description="images to calibrate 8 bits on: of the last selection")
    teacher: str | None = Field(None, description="teacher description: adds each file's agreement with it")
    trust_code: bool = Field(False, description=TRUST_CODE)
    trust_entries: TrustEntries = False
    private_hosts: PrivateHosts = False
    threads: int = Field(1, ge=1, description="threads of each file's timing")

    @model_validator(mode="after")
    def _eight_bits_of_onnx(self) -> ExportConfig:
        if self.int8 and "onnx" not in self.format:
            raise ValueError("int8 is made from ONNX; add onnx to format")
        return self


class ReportConfig(Settings):
    """Write one HTML file that tells what a run did, or how several compare."""

    runs: Annotated[list[str], BeforeValidator(one_or_many)] = Field(
        min_length=1, description="folders of finished runs"
    )
    out: str | None = Field(None, description="file to write (default: report.html in the folder of the first run)")
    teacher: str | None = Field(None, description="the teacher, where it is no longer where the run found it")
    pool: str | None = Field(None, description="the pool, where it is no longer where the run found it")
    data: str | None = Field(
        None,
        description="labelled images, to show what was lost: both networks by class, images that only the teacher gets "
        "right, calibration (one run only)",
    )
    images: Count = Field(
        1000, ge=0, description="pool images to look at with both networks, for pictures, map and shift; 0: none"
    )
    latency: bool = Field(True, description="measure how long teacher and student take on this machine's CPU")
    trust_code: bool = Field(False, description=TRUST_CODE)
    trust_entries: TrustEntries = False
    private_hosts: PrivateHosts = False
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N, for looking at the pool")

    @model_validator(mode="after")
    def _data_of_one(self) -> ReportConfig:
        if self.data is not None and len(self.runs) > 1:
            raise ValueError("data goes with one run; kd3 evaluate compares each of several")
        return self


class InspectConfig(Settings):
    """Show what was found in a teacher: classifier, features, shapes, parameters, normalisation."""

    teacher: str = Field(description="teacher description (YAML), or timm:NAME, torchvision:NAME, hf:NAME_OR_FOLDER")
    pool: str | None = Field(
        None, description="pool made by `kd3 ingest`: looks whether mean, std and the order of colours fit the teacher"
    )
    student: str | None = Field(
        None,
        description="student architecture: shows part by part which weights it would inherit from the teacher; of "
        "shrink:0.3 what it would leave out",
    )


class MethodsConfig(Settings):
    """List the distillation methods."""


class SchemaConfig(Settings):
    """Print the JSON schema of a file, by which editors complete and check it."""

    file: Literal["distill", "teacher", "study"] = Field(
        description="distill: a file for --config; teacher: a teacher's description; study: a study of your own"
    )


class CompletionConfig(Settings):
    """Print what makes a shell complete the commands and flags of kd3."""

    shell: Literal["bash", "zsh", "tcsh"] = Field(description="the shell")


class StudyConfig(Settings):
    """Run a grid of distillations at an equal budget and compare them in a table."""

    study: str = Field(description="name of a study that comes with kd3, or a YAML file of your own")
    out: str = Field(description="folder of the study; run again to go on")
    teacher: str = Field(description="teacher description (YAML)")
    student: str = Field(description="student architecture, as for kd3 distill")
    pool: str = Field(description="pool of the crawl, made by `kd3 ingest`")
    original: str | None = Field(None, description="pool of the original data, for rows that are bounds")
    other: Annotated[list[str], BeforeValidator(split_commas)] = Field(
        [],
        description="pools of other kinds of images (off-topic, another style): POOL, for rows that mix it in, and "
        "NAME=POOL for each that the study names; comma separated",
    )
    eval_data: str | None = Field(None, description="labelled images to report accuracy on; they choose nothing")
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
        [], description="seeds of every row, comma separated (default: the study's)"
    )
    rows: Annotated[list[str], BeforeValidator(split_semicolons)] = Field(
        [], description="only these rows or series, separated by semicolons"
    )
    known: Annotated[list[str], BeforeValidator(split_commas)] = Field(
        [],
        description="results.json of this study from another machine or an earlier day, comma separated: what was run "
        "there with the same settings, teacher and pool is not run again",
    )
    jobs: int = Field(1, ge=1, description="runs at the same time; they share the devices")
    devices: Annotated[list[str], BeforeValidator(split_commas)] = Field(
        [], description="devices that take turns, comma separated, such as cuda:0,cuda:1 (default: --device)"
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    precision: Precision = Field("auto", description="as for kd3 distill")
    engine: Engine = Field(
        "local",
        description="'ray': on a Ray cluster (RAY_ADDRESS), a core for each run and, where there is one, a GPU",
    )
    dry_run: bool = Field(False, description="say what would be run, and run nothing")


class DemoConfig(Settings):
    """Run the whole job on data made on this machine: no download, no GPU."""

    out: str = Field("demo", description="folder for everything the demo makes")
    images: Count = Field(
        6_000, ge=256, description="training images of each of the two runs; with 20k plain KD catches up here"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of everything random")
