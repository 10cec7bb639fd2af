"""Settings of the commands that make and examine pools: one class per command. Free of torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from kd3.config.published import DATASETS
from kd3.config.records import Fit
from kd3.config.settings import (
    TRUST_CODE,
    WORKERS,
    Count,
    Engine,
    Precision,
    PrivateHosts,
    Settings,
    TrustEntries,
    one_or_many,
)
from kd3.runtime.errors import unknown_name


class IngestConfig(Settings):
    """Make a pool of equal-sized images from a crawl."""

    sources: Annotated[list[str], BeforeValidator(one_or_many)] = Field(
        min_length=1,
        description="folders; tar, zip, parquet, arrow, npy and npz files; CIFAR and ImageNet batches; lists of "
        "paths (.txt .csv .lst); each also as a URL (https, s3, gs, hf, ...); globs and "
        "{00000..00010} braces work",
    )
    out: str = Field(description="folder of the pool; made if absent, continued if interrupted")
    image_size: int = Field(
        ge=8, le=1024, description="side of the images in the pool, in pixels: the teacher's input size"
    )
    fit: Fit = Field(
        "crop",
        description="'crop': shorter side to size, then the centre; 'squash': the whole image, distorted",
    )
    min_side: int = Field(16, ge=1, description="refuse images with a shorter side than this, in pixels")
    max_pixels: Count = Field(100_000_000, ge=1, description="refuse images with more pixels than this, undecoded")
    max_seconds: float = Field(
        60.0,
        gt=0,
        description="give up a file that takes longer to read and decode than this (not with --workers 0), and an "
        "archive that yields no file in this time",
    )
    max_unpacked: Count | None = Field(
        None,
        ge=1,
        description="most bytes for the files of one archive; the rest of it is left out (default: 50 times the "
        "archive's size, and at least 4 GiB)",
    )
    dedup: Literal["exact", "near"] = Field(
        "exact",
        description="'exact' keeps one of files that are equal byte for byte; 'near' also keeps one of images "
        "that look the same, such as re-encoded, rescaled, brightened or slightly cropped copies (the "
        "first stays)",
    )
    keep_out: Annotated[list[str], BeforeValidator(one_or_many)] = Field(
        [],
        description="test images of the student (folder, archive, ... as SOURCE; repeat it for more): these "
        "images and near copies of them stay out of the pool",
    )
    workers: int | None = Field(None, ge=0, description=WORKERS)
    limit: Count | None = Field(None, ge=1, description="stop after this many files")
    shard: str | None = Field(
        None,
        pattern=r"^[1-9]\d*/[1-9]\d*$",
        description="I/N: only the I-th of N equal parts of the files and archives, for N machines; `kd3 pool "
        "merge` makes one pool of the parts",
    )
    trust_entries: TrustEntries = False
    private_hosts: PrivateHosts = False
    engine: Engine = Field("local", description="'ray': in parts on a Ray cluster (RAY_ADDRESS) with a shared disk")

    @field_validator("shard")
    @classmethod
    def _part_of_the_whole(cls, shard: str | None) -> str | None:
        if shard is not None and int(shard.partition("/")[0]) > int(shard.partition("/")[2]):
            raise ValueError(f"{shard} is no part of a whole: I/N has I from 1 to N")
        return shard

    @model_validator(mode="after")
    def _parts_are_the_engines(self) -> IngestConfig:
        if self.engine == "ray" and (self.shard is not None or self.limit is not None):
            raise ValueError("engine ray cuts the crawl into parts itself; leave shard and limit out")
        return self

    @property
    def part(self) -> tuple[int, int] | None:
        """The shard as (I, N)."""
        if self.shard is None:
            return None
        number, _, of = self.shard.partition("/")
        return int(number), int(of)


class DatasetConfig(Settings):
    """Make a published data set ready: a pool, a training set for a teacher, a test set."""

    name: str = Field(description=f"one of: {', '.join(DATASETS)}")
    files: str = Field(
        description="the archive as its authors publish it, the folder that it lies in, or the folder that it was "
        "unpacked to; train/CLASS and test/CLASS of your own with --no-check; of imagenet32 also a pickle of its images"
    )
    out: str = Field(description="folder for train.zip, test.zip and pool/; of a crawl for pool/")
    download: bool = Field(False, description="fetch what is missing in the folder FILES from its authors' servers")
    check: bool = Field(
        True, description="compare checksums, and the numbers of images, with those of the published files"
    )
    limit: Count | None = Field(None, ge=1, description="of a crawl: take so many images (the paper: 600k)")
    workers: int | None = Field(None, ge=0, description=WORKERS)

    @field_validator("name")
    @classmethod
    def _known_data_set(cls, name: str) -> str:
        if name not in DATASETS:
            raise ValueError(str(unknown_name("data set", name, DATASETS)))
        return name


class PoolConfig(Settings):
    """Describe pools, verify them, and make pools from pools."""

    action: Literal["info", "verify", "merge", "sample", "filter"] = Field(
        description="info: print the contents of a pool; verify: read everything and report damage; merge: make "
        "one pool of several; sample: take a random part; filter: drop some images"
    )
    pools: Annotated[list[str], BeforeValidator(one_or_many)] = Field(min_length=1, description="pools")
    out: str | None = Field(None, description="folder of the new pool (merge, sample, filter)")
    share: float | None = Field(
        None, gt=0, le=1, description="for sample: the part to take; a smaller part lies in a larger one"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="for sample: another seed draws other images")
    keep: str | None = Field(
        None,
        description="for filter: file with one image per line: kept.jsonl of kd3 select, or keys, or source, tab "
        "and key",
    )
    drop: str | None = Field(None, description="for filter: the same for images to drop")


class SelectConfig(Settings):
    """Show which images of a pool the paper's selection would keep, and which it would refuse."""

    teacher: str = Field(description="teacher description (YAML)")
    pool: str = Field(description="pool made by `kd3 ingest`")
    out: str = Field(description="folder for the lists and pictures; must be absent or empty")
    student: str | None = Field(
        None,
        description="run folder or student/ folder of the same classes: its predictions are mixed with the teacher's",
    )
    teacher_weight: float | None = Field(
        None, ge=0, le=1, description="alpha: the teacher's share in the score (default: 1; with a student 0.5)"
    )
    threshold: float = Field(0.95, ge=0, le=1, description="tau: confidence that the commonest class must exceed")
    at_least: Count = Field(
        1, ge=1, description="keep at least this many images; the most confident others fill the gap"
    )
    images_per_grid: int = Field(64, ge=0, le=1024, description="images in a picture of a class; 0: no such pictures")
    grid_classes: Count = Field(
        200, ge=1, description="draw pictures of at most this many classes, those with the most kept images"
    )
    trust_code: bool = Field(False, description=TRUST_CODE)
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    precision: Precision = Field(
        "auto", description="auto means bfloat16 if the hardware supports it, else 32; 16 needs a GPU"
    )

    @field_validator("teacher_weight")
    @classmethod
    def _a_student_to_ask(cls, weight: float | None, info: ValidationInfo) -> float | None:
        if weight is not None and weight < 1 and info.data.get("student") is None:
            raise ValueError(f"a weight of {weight:g} leaves a share to a student; give one, or leave the weight out")
        return weight

    @property
    def alpha(self) -> float:
        """The teacher's share in the score, in [0, 1]."""
        if self.teacher_weight is not None:
            return self.teacher_weight
        return 1.0 if self.student is None else 0.5


class PlanConfig(Settings):
    """Compare students before a run: cost, duration and expected accuracy."""

    teacher: str = Field(description="teacher description (YAML), or timm:NAME, torchvision:NAME, hf:NAME_OR_FOLDER")
    pool: str = Field(description="pool made by `kd3 ingest`")
    deployment: str | None = Field(
        None,
        description="unlabelled images from the place where the student will work (a pool, or any source of kd3 "
        "ingest): their distance from the training data is shown beside the pool's",
    )
    minutes: float | None = Field(None, gt=0, description="time limit of the run on this machine")
    int8: bool = Field(
        False,
        description="also export the teacher and every candidate to ONNX and time the files in float32 and in 8 bits: "
        "several seconds for each; needs kd3[export]",
    )
    trust_code: bool = Field(False, description=TRUST_CODE)
    trust_entries: TrustEntries = False
    private_hosts: PrivateHosts = False
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N, for the run; latencies are the CPU's")
    precision: Precision = Field("auto", description="precision of the run: auto, 32, bf16 or 16")


class ShiftConfig(Settings):
    """Measure how far a pool is from the teacher's training data."""

    teacher: str = Field(description="teacher description (YAML)")
    pool: str = Field(description="pool made by `kd3 ingest`")
    reference: str | None = Field(
        None,
        description="images like the teacher's training data: folder, zip, tar or pool, with or without class "
        "folders; a few hundred are enough",
    )
    out: str | None = Field(
        None, description="folder for shift.json, shift.md and figures (default: nothing is written)"
    )
    limit: Count = Field(
        10_000, ge=2, description="most images of each side in the feature space; statistics use the whole pool"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of all random numbers")
    trust_code: bool = Field(False, description=TRUST_CODE)
    trust_entries: TrustEntries = False
    private_hosts: PrivateHosts = False
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    precision: Precision = Field("32", description="32 by default, so that figures compare across machines")
    workers: int | None = Field(None, ge=0, description=WORKERS)
