"""Costs of a table of the paper: runs, images, disk, and hours extrapolated from a few measured steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from kd3.commands.distill_parts import method_of
from kd3.commands.study import given_settings, with_seeds
from kd3.config.commands import StudyConfig
from kd3.config.distill import DistillConfig
from kd3.config.published import CRAWLS, DATASETS, TABLES, Pair, ReproduceConfig
from kd3.config.settings import build
from kd3.config.training import DEFAULT_IMAGES
from kd3.methods import Method
from kd3.models.arch import build_arch
from kd3.models.costs import idle_seconds
from kd3.models.teacher import Teacher
from kd3.models.zoo import ZOO
from kd3.pool import ImagePool
from kd3.pool.pool_files import NAME, read_manifest
from kd3.runtime import console
from kd3.runtime.compute import Compute
from kd3.runtime.console import clock
from kd3.runtime.errors import KD3Error
from kd3.scoring.batches import PoolBatches
from kd3.scoring.scan import score
from kd3.studies.candidates import FEW, pace_of
from kd3.studies.datasets import ABOUT, POOL, bytes_needed, free_at
from kd3.studies.plan import Cell, Plan, plan, read_study
from kd3.studies.published_files import TEST

ASSUMED = 600_000  # images of a missing crawl, as in the paper
NOISE = 1024  # images, on which steps are measured
STEPS, SECONDS = 3, 2.0
WEIGHT = 4  # bytes
COPIES = 8  # of a student's weights in its run: checkpoint with momentum and projector, best, as trained, as adapted


@dataclass(frozen=True)
class PlannedRow:
    """A line of a pair's table."""

    row: str
    runs: int
    images: int  # per run, at most
    hours: float  # of all its runs in sequence


@dataclass(frozen=True)
class PlannedPair:
    """A pair and its costs."""

    pair: str
    rows: list[PlannedRow]
    teacher_hours: float  # of its training; 0 if it is given

    @property
    def hours(self) -> float:
        """Of all its runs and its teacher."""
        return self.teacher_hours + sum(row.hours for row in self.rows)


@dataclass(frozen=True)
class PaperPlan:
    """Costs of a table."""

    title: str
    budget: str
    pairs: list[PlannedPair]
    disk: dict[str, int]  # bytes by purpose
    free: int  # bytes
    compute: str
    assumed: bool  # the crawl is missing; the paper's size was assumed

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {**asdict(self), "runs": self.runs, "hours": self.hours}

    @property
    def runs(self) -> int:
        """All distillations."""
        return sum(row.runs for pair in self.pairs for row in pair.rows)

    @property
    def hours(self) -> float:
        """Hours of everything in sequence."""
        return sum(pair.hours for pair in self.pairs)

    def __str__(self) -> str:
        lines = [f"{self.title}, budget: {self.budget}; nothing was run"]
        for pair in self.pairs:
            lines.append(f"  {pair.pair}")
            width = max(len(row.row) for row in pair.rows)
            for row in pair.rows:
                lines.append(
                    f"    {row.row:<{width}}  {row.runs:>2} runs of {row.images:>13,} images  "
                    f"{_duration(row.hours):>12}"
                )
            if pair.teacher_hours:
                lines.append(f"    {'its teacher':<{width}}  {'':>28}  {_duration(pair.teacher_hours):>15}")
        total = sum(row.runs * row.images for pair in self.pairs for row in pair.rows)
        lines += [
            f"  runs   {self.runs} and {total:,} training images" + (" at most" if self.budget == "paper" else ""),
            f"  time   {_duration(self.hours)} on this device, one run after the other ({self.compute}), by {STEPS} "
            f"measured steps of each row at most",
            f"  disk   {sum(self.disk.values()) / 1e9:.1f} GB "
            f"({', '.join(f'{name} {size / 1e9:.1f}' for name, size in self.disk.items())}); "
            f"{self.free / 1e9:.1f} GB are free",
        ]
        if self.assumed:
            lines.append(f"  crawl  not there yet; taken to have {ASSUMED:,} images, as the paper's")
        return "\n".join(lines)


def study_config(pair: Pair, config: ReproduceConfig, teacher: str) -> StudyConfig:
    """Return the settings of a pair's study."""
    data = Path(config.data)
    values = {
        "study": TABLES[config.table].studies[config.budget],
        "out": str(Path(config.out) / pair.name),
        "teacher": teacher,
        "student": f"kd3:{pair.student}",
        "pool": str(_crawl(pair, config)),
        "original": str(data / pair.dataset / POOL),
        "eval_data": str(data / pair.dataset / f"{TEST}.zip"),
        "flip": None if DATASETS[pair.dataset].flip else False,
        **config.model_dump(include={"images", "seeds", "rows", "jobs", "device", "precision"}, exclude_none=True),
    }
    return build(StudyConfig, values, where="kd3 reproduce")


def data_sets(pairs: list[Pair], config: ReproduceConfig) -> list[str]:
    """Return the names of the data sets of a table, with the crawl unless another one is given."""
    crawls = [] if config.crawl else [CRAWLS[DATASETS[pair.dataset].side] for pair in pairs]
    return list(dict.fromkeys([*(pair.dataset for pair in pairs), *crawls]))


def check_disk(pairs: list[Pair], config: ReproduceConfig) -> dict[str, int]:
    """Estimate the bytes that a table still needs, by purpose.

    Raises:
        KD3Error: the disk has too little space.
    """
    need = dict(_disk(pairs, config))
    free, total = free_at(Path(config.out)), sum(need.values())
    if free < total:
        words = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in need.items())
        raise KD3Error(
            f"{TABLES[config.table].title} takes about {total / 1e9:.1f} GB ({words}), and the disk of {config.out} "
            f"has {free / 1e9:.1f} GB free"
        )
    return need


def plan_table(pairs: list[Pair], config: ReproduceConfig, compute: Compute) -> PaperPlan:
    """Estimate a table's costs; steps are measured on noise, so no data are needed."""
    disk = check_disk(pairs, config)
    planned = []
    for pair in pairs:
        console.info(f"a few steps of {pair.name}")
        planned.append(_planned(pair, config, compute))
    return PaperPlan(
        TABLES[config.table].title,
        config.budget,
        planned,
        disk,
        free_at(Path(config.out)),
        str(compute),
        assumed=any(_crawl_images(pair, config)[1] for pair in pairs),
    )


def _disk(pairs: list[Pair], config: ReproduceConfig) -> Iterator[tuple[str, int]]:
    data = Path(config.data)
    for name in data_sets(pairs, config):
        if not (data / name / ABOUT).is_file():
            yield name, bytes_needed(DATASETS[name], limit=ASSUMED if DATASETS[name].is_crawl else None)
    runs = logits = 0
    for pair in pairs:
        runs += COPIES * WEIGHT * ZOO[pair.student].parameters * len(_study_plan(pair, config).cells)
        logits += WEIGHT * DATASETS[pair.dataset].classes * _crawl_images(pair, config)[0]
    yield "runs", runs
    yield "teachers' logits", logits


def _planned(pair: Pair, config: ReproduceConfig, compute: Compute) -> PlannedPair:
    side = DATASETS[pair.dataset].side
    draw = np.random.default_rng(0)
    noise = ImagePool.from_array(draw.integers(0, 256, (NOISE, 3, side, side), dtype=np.uint8))
    teacher = _teacher(pair)
    planned = _study_plan(pair, config)
    paces: dict[str, _Pace] = {}
    rows = []
    for row in planned.rows:
        cells = [cell for cell in planned.cells if cell.row == row]
        settings = _settled(cells[0])
        key = settings.model_dump_json(exclude={"seed": True, "train": {"images", "epochs", "share"}})
        if key not in paces:
            paces[key] = _measured(settings, teacher, noise, compute)
        pool = _pool_images(cells[0], planned, pair, config)
        images, seconds = _run(settings, pool, paces[key])
        rows.append(PlannedRow(row, len(cells), images, len(cells) * seconds / 3600))
    teacher_hours = 0.0
    if config.teachers is None:
        learned = config.epochs_of_teachers * _original_images(pair, config)
        # Forward and back costs about three times forward.
        teacher_hours = 3 * learned * next(iter(paces.values())).teacher / 3600
    return PlannedPair(pair.name, rows, teacher_hours)


@dataclass(frozen=True)
class _Pace:
    """Seconds per image."""

    step: float  # to learn from it
    student: float  # to score it
    teacher: float
    passes: float  # over the selected images, before the next selection; 0: no image is scored again


def _measured(settings: DistillConfig, teacher: Teacher, noise: ImagePool, compute: Compute) -> _Pace:
    method, backbone = method_of(settings, teacher, None, noise, resumed=False)
    train = settings.train.settled(inherited=backbone.inheritance is not None)
    few = train.model_copy(update={"images": DEFAULT_IMAGES, "epochs": None, "epoch_of": "pool"})
    # Score first: a few steps on noise without warm-up may produce non-finite values.
    student, teachers = (_scoring(network, method, noise, compute) for network in (method.student, method.teacher))
    pace = pace_of(method, noise, np.arange(len(noise)), few, compute, steps=STEPS, seconds=SECONDS)
    is_scored = getattr(settings.method_options, "selection", None) == "dynamic"
    return _Pace(
        1 / pace.images_per_second,
        student,
        teachers,
        method.passes_per_selection if is_scored else 0.0,
    )


def _scoring(network: nn.Module, method: Method, noise: ImagePool, compute: Compute) -> float:
    places = np.arange(FEW if compute.device.type == "cpu" else len(noise))
    compute.place(network)
    began = idle_seconds(compute.device)
    score(network, PoolBatches(noise, compute), places, method.student.normalise, compute)
    return (idle_seconds(compute.device) - began) / len(places)


def _run(settings: DistillConfig, pool: int, pace: _Pace) -> tuple[int, float]:
    """Return the training images of a run, at most, and its seconds."""
    epochs = settings.train.epochs
    images = settings.train.images or DEFAULT_IMAGES if epochs is None else round(epochs * pool)
    rounds = math.ceil(images / (pool * pace.passes)) if pace.passes else 0
    scans = rounds * pool * pace.student + (pool * pace.teacher if pace.passes else 0)
    return images, images * pace.step + scans


def _study_plan(pair: Pair, config: ReproduceConfig) -> Plan:
    of_study = study_config(pair, config, teacher="-")
    study = with_seeds(read_study(of_study.study), of_study)
    return plan(study, given_settings(of_study), ["crawl", "original"], only=config.rows)


def _settled(cell: Cell) -> DistillConfig:
    values = {**cell.settings, "pool": cell.pool, "out": "-"}
    return build(DistillConfig, values, where=f"row {cell.row!r}").settled()


def _teacher(pair: Pair) -> Teacher:
    """Return the teacher with random weights, which compute as fast as trained ones."""
    dataset = DATASETS[pair.dataset]
    channels, classes = 1 if dataset.grey else 3, dataset.classes
    network = build_arch(f"kd3:{pair.teacher}", num_classes=classes, input_size=dataset.side, channels=channels)
    half = [0.5] * channels
    return Teacher(network, mean=half, std=half, input_size=dataset.side, num_classes=classes)


def _crawl(pair: Pair, config: ReproduceConfig) -> Path:
    """Return the pool of the crawl."""
    return Path(config.crawl or Path(config.data) / CRAWLS[DATASETS[pair.dataset].side] / POOL)


def _pool_images(cell: Cell, planned: Plan, pair: Pair, config: ReproduceConfig) -> int:
    """Return the images of a run's pool, of a recipe by its share."""
    share, name = float(cell.settings.get("train", {}).get("share", 1)), cell.pool
    while name in planned.recipes:
        share *= planned.recipes[name].share
        name = planned.recipes[name].source
    whole = _original_images(pair, config) if name == "original" else _crawl_images(pair, config)[0]
    return max(1, round(share * whole))


def _crawl_images(pair: Pair, config: ReproduceConfig) -> tuple[int, bool]:
    """Return the images of the crawl, and whether that is a guess."""
    folder = _crawl(pair, config)
    return (read_manifest(folder).images, False) if (folder / NAME).is_file() else (ASSUMED, True)


def _original_images(pair: Pair, config: ReproduceConfig) -> int:
    folder = Path(config.data) / pair.dataset / POOL
    return read_manifest(folder).images if (folder / NAME).is_file() else DATASETS[pair.dataset].train


def _duration(hours: float) -> str:
    return clock(3600 * hours) if hours < 48 else f"{hours / 24:,.0f} days"
