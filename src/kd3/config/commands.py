"""Settings of the commands, except `kd3 distill` and those of pools: one class per command. Free of torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from kd3.config.settings import (
    LEAST_RECALLED,
    TRUST_CODE,
    WORKERS,
    Count,
    Engine,
    Precision,
    PrivateHosts,
    Settings,
    TrustEntries,
    one_or_many,
    split_commas,
    split_semicolons,
)

KEEP_OUT = "test images of the student (folder, archive, ...; repeat it for more): images like one of them are not used"
CASCADE_IMAGES = 2000  # of a deployment
RECALLED_IMAGES, GIVEN_IMAGES = 64, 500  # defaults for the images that statistics are counted on


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
    keep_out: Annotated[list[str], BeforeValidator(one_or_many)] = Field([], description=KEEP_OUT)
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
    keep_out: Annotated[list[str], BeforeValidator(one_or_many)] = Field([], description=KEEP_OUT)
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
    evals: int | None = Field(None, ge=1, description="as for kd3 distill (default: the study's)")
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
