"""Candidate students before a run, and their measured speed: of training steps, and as ONNX files, also in 8 bits."""

from __future__ import annotations

import copy
import io
import re
import statistics
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kd3.config.shrink import Shrink
from kd3.config.training import TrainSettings
from kd3.exports.comparison import milliseconds
from kd3.exports.formats import Source, check_onnx_packages, run_onnx, write_onnx
from kd3.exports.quantise import VARIANTS, write_variant
from kd3.inheritance.plan import plan_inheritance
from kd3.inheritance.shrinking import blocks_of, plan_shrinking, shrunk
from kd3.methods import Method
from kd3.models.arch import build_arch, parse_arch
from kd3.models.costs import TIMED, idle_seconds, multiply_adds
from kd3.models.fold import fold, foldable
from kd3.models.soundness import sound_logits
from kd3.models.teacher import Teacher
from kd3.models.zoo import ZOO
from kd3.pool import ImagePool
from kd3.runtime import console
from kd3.runtime.compute import Compute
from kd3.runtime.errors import KD3Error
from kd3.scoring.batches import PoolBatches
from kd3.training.learner import Learner

SHARES = (0.5, 0.3, 0.15)


@dataclass(frozen=True)
class Candidate:
    """A student that could be distilled."""

    name: str  # as for --student
    network: nn.Module  # with any weights
    inherits: float  # part of its parameters from the teacher, in [0, 1]


def candidates(teacher: Teacher, images: Tensor) -> tuple[list[Candidate], list[str]]:
    """Return the students to choose from, and a sentence for each impossible share of shrinking.

    Shapes: images (B, C, H, W), normalised: of the pool.
    """
    found: list[Candidate] = []
    problems: list[str] = []
    names = _family(teacher)
    with console.progress("candidate students", len(names) + 1 + len(SHARES), "networks") as bar:
        most = multiply_adds(teacher.module, images[:1]) if names else 0
        counted: list[tuple[int, Candidate]] = []
        for name in names:
            network = _built(name, teacher)
            count = multiply_adds(network, images[:1].cpu())
            if count < most:
                plan = plan_inheritance(network, teacher.module)
                counted.append((count, Candidate(name, network, 0.0 if plan.is_empty else plan.share)))
            bar.advance()
        found += [candidate for _, candidate in sorted(counted, key=lambda pair: -pair[0])]
        try:
            blocks = blocks_of(teacher, images, "recovery")
        except KD3Error as problem:
            return found, [str(problem)]
        bar.advance()
        for share in SHARES:
            asked = Shrink(share)
            try:
                network = shrunk(teacher, plan_shrinking(teacher, images, asked, rule="recovery", known=blocks))
            except KD3Error as problem:
                problems.append(f"{asked}: {problem}")
            else:
                found.append(Candidate(str(asked), network, 1.0))
            bar.advance()
    return found, problems


def _family(teacher: Teacher) -> list[str]:
    """Return the other networks of the zoo of the teacher's class."""
    if teacher.origin is None:
        return []
    reference = parse_arch(teacher.origin.arch)
    if reference.source != "kd3" or reference.target not in ZOO:
        return []
    builder = ZOO[reference.target].builder
    return [f"kd3:{name}" for name, entry in ZOO.items() if entry.builder == builder and name != reference.target]


def _built(student: str, teacher: Teacher) -> nn.Module:
    """Return a network of the zoo for the teacher's classes and images, with random weights."""
    assert teacher.input_size is not None
    channels, classes = teacher.normalise.channels, teacher.num_classes
    with torch.random.fork_rng(devices=[]):
        network = build_arch(
            student, num_classes=classes, relative_to=Path(), input_size=teacher.input_size, channels=channels
        )
    what = f"student {student}"
    sound_logits(network, teacher.input_size, what=what, channels=channels, num_classes=classes)
    return network


@dataclass(frozen=True)
class Exported:
    """One network, run by onnxruntime on one thread of this machine's CPU."""

    float32: dict[int, float]  # milliseconds by the number of images
    int8: dict[int, float]
    bytes: int  # of the file in 8 bits


def exported(networks: Mapping[str, nn.Module], images: Tensor) -> tuple[dict[str, Exported], list[str]]:
    """Export each network, time all files in turns, and return a sentence for each failure.

    In 8 bits, all layers are quantised per channel. `kd3 export --int8` chooses among four ways by agreement, which
    needs a trained student; weights do not change the time.

    Shapes: images (B, C, H, W), network inputs, for calibration.

    Raises:
        KD3Error: the packages of `kd3[export]` are missing.
    """
    check_onnx_packages()
    most = TIMED.of(images.shape[-1])
    images = images.cpu().repeat(-(-most // len(images)), 1, 1, 1)[:most]
    found: dict[str, Exported] = {}
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        files: dict[tuple[str, str], Path] = {}
        with console.progress("export", len(networks), "networks") as bar:
            for place, (name, network) in enumerate(networks.items()):
                floats, bits = Path(folder, f"{place}.onnx"), Path(folder, f"{place}-int8.onnx")
                try:
                    _write(network, floats, bits, images)
                except Exception as problem:  # torch's exporter raises many kinds
                    problems.append(f"{name} cannot be exported: {_cause(problem)}")
                else:
                    files[name, "float32"], files[name, "int8"] = floats, bits
                bar.advance(1)
        runners = {f"{name}\0{kind}": run_onnx(path, threads=1) for (name, kind), path in files.items()}
        times = milliseconds(runners, images)
        for name, kind in files:
            if kind == "int8":
                size = files[name, kind].stat().st_size
                found[name] = Exported(times[f"{name}\0float32"], times[f"{name}\0int8"], size)
    return found, problems


def _write(network: nn.Module, floats: Path, bits: Path, images: Tensor) -> None:
    network = copy.deepcopy(network).cpu().float().eval()
    network = fold(network, foldable(network, images.shape[-1]))
    with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):  # on a failure torch prints whole graphs
        write_onnx(Source(network, floats.parent, {}, images[:2]), floats)
        write_variant(floats, bits, VARIANTS[0], images)


def _cause(problem: BaseException) -> str:
    """Return the first line of the innermost exception, without a terminal's commands."""
    while (inner := problem.__cause__ or problem.__context__) is not None:
        problem = inner
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(problem)).splitlines() if line.strip()]
    return f"{type(problem).__name__}: {lines[0]}" if lines else type(problem).__name__


STEPS = 20
SECONDS = 20.0  # no step begins after these
WARM_UP = 2  # uncounted steps
FEW = 16  # images of a measured step on a CPU, at least; fewer than a run's where that would take too long


@dataclass(frozen=True)
class Pace:
    """Measurements of the steps."""

    steps: int
    batch: int  # images
    seconds: float  # a step of them, on an otherwise idle machine: the median

    @property
    def images_per_second(self) -> float:
        """Training images a second, without scoring the pool."""
        return self.batch / self.seconds


def pace_of(
    method: Method,
    pool: ImagePool,
    places: np.ndarray,
    settings: TrainSettings,
    compute: Compute,
    *,
    steps: int = STEPS,
    seconds: float = SECONDS,
) -> Pace:
    """Measure the time of a method's step; this changes its student.

    `places` are the positions in the pool of the images to train on. A slow network takes fewer than `steps`: none
    begins after `seconds`. On a CPU, steps that would take longer in all are measured with fewer images, `FEW` at
    least, and extrapolated: the optimizer's part of a step takes as long for any number of images. A method that
    needs labels gets artificial ones.
    """
    labels = torch.zeros(len(pool), dtype=torch.int64) if method.needs_labels else None
    learner = Learner(method, settings, seed=0, total_steps=steps + WARM_UP, compute=compute, labels=labels)
    batches = PoolBatches(pool, compute)
    method.train()

    def timed(batch: int, count: int) -> list[float]:
        times: list[float] = []
        order = np.resize(places, batch * count)
        began = idle_seconds(compute.device)
        for number, images in enumerate(batches.iterate(order, batch)):
            start = idle_seconds(compute.device)
            learner.step(number, images, torch.from_numpy(order[number * batch : (number + 1) * batch]))
            times.append(idle_seconds(compute.device) - start)
            bar.advance(note=f"{batch} images each")
            if len(times) > WARM_UP and idle_seconds(compute.device) - began > seconds:
                break
        return times

    batch = whole = min(settings.batch, len(places))
    with (
        torch.random.fork_rng(devices=[compute.device] if compute.device.type == "cuda" else []),
        console.progress("steps of a run", steps + WARM_UP, "steps") as bar,
    ):
        if compute.device.type == "cpu" and whole > FEW:
            bar.set_total(1 + steps + WARM_UP)
            (first,) = timed(FEW, 1)
            batch = min(whole, max(FEW, int(FEW * seconds / (first * (steps + WARM_UP)))))
        counted = timed(batch, steps + WARM_UP)[WARM_UP:]
        step = statistics.median(counted)
        if batch < whole:
            start = idle_seconds(compute.device)
            learner.optimizer.step()
            fixed = min(step, idle_seconds(compute.device) - start)
            step = fixed + (step - fixed) * whole / batch
    return Pace(len(counted), whole, step)
