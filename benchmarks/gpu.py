"""Check and time kd3 on this machine's GPU: `python -m benchmarks.gpu` (`make gpu`) writes one JSON file and one page.

What is done already is kept: the same command goes on. `--pretend` runs all of it on the CPU, tiny, as tests do.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import kd3
from benchmarks.machine import machine
from kd3.config.methods import METHODS
from kd3.config.run_records import read_summary
from kd3.config.training import TrainSettings
from kd3.methods import Method, Parts, build_method
from kd3.models.libraries.zoo import build_by_name
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool
from kd3.runtime.compute import Compute, resolve
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import replacing, write_json
from kd3.scoring.batches import PoolBatches
from kd3.training.learner import Learner

CLASSES = 10
MEAN, STD = [0.5] * 3, [0.25] * 3
Result = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """Device and size of the measurements."""

    compute: Compute
    work: Path
    pretend: bool

    @property
    def pair(self) -> tuple[str, str]:
        """Teacher and student."""
        return ("resnet8", "resnet8") if self.pretend else ("resnet34", "resnet18")

    @property
    def side(self) -> int:
        """Of the images, in pixels."""
        return 16 if self.pretend else 32

    @property
    def batches(self) -> tuple[int, ...]:
        """Images a step."""
        return (8,) if self.pretend else (64, 256, 1024)

    @property
    def seconds(self) -> float:
        """Seconds of measurement for each rate."""
        return 0.2 if self.pretend else 5.0

    @property
    def devices(self) -> int:
        """Number of devices; a pretended machine has two, since two processes can share a CPU."""
        return 2 if self.pretend else torch.cuda.device_count()

    @property
    def patience(self) -> float:
        """Seconds until two processes that do not end are stopped."""
        return 300.0 if self.pretend else 120.0

    def on(self, *, precision: str, device: str | None = None) -> Compute:
        """Return the device, or another one, in a precision."""
        return Compute(self.compute.device if device is None else torch.device(device), precision)

    def images(self, count: int) -> ImagePool:
        """Return a pool of noise in memory, the same at each call."""
        draw = np.random.default_rng(0)
        return ImagePool.from_array(draw.integers(0, 256, (count, 3, self.side, self.side), dtype=np.uint8))

    def learner(self, compute: Compute, *, batch: int, method: str = "kd3", **settings: Any) -> Learner:
        """Return a learner, the same at each call."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            made = self._method(method)
        values = TrainSettings(images=10**9, batch_size=batch, **settings)
        learner = Learner(made, values, seed=0, total_steps=10**6, compute=compute)
        made.train()
        return learner

    def _method(self, name: str) -> Method:
        teacher = Teacher(build_by_name(self.pair[0], num_classes=CLASSES), mean=MEAN, std=STD, input_size=self.side)
        sample = torch.randn(4, 3, self.side, self.side)
        backbone = build_by_name(self.pair[1], num_classes=CLASSES)
        options = METHODS[name].options()
        return build_method(name, options, Parts(teacher, backbone, self.pair[1], sample))


def losses(bench: Bench) -> Result:
    """Return how far the losses of steps on the device are from the CPU's, in float32 as IEEE has it."""
    batch, steps, told = 8, 3, {}
    pool = bench.images(batch)
    for name in ("kd3", "kd", "dfnd", "simkd"):
        found: dict[str, list[float]] = {}
        for device in ("cpu", str(bench.compute.device)):
            compute = bench.on(precision="32", device=device)
            with compute.tuned(tf32=False, deterministic=False):
                # Without random views: generators of different devices draw different numbers.
                learner = bench.learner(compute, batch=batch, method=name, augmentation="none", flip=False)
                images = torch.from_numpy(pool.read(np.arange(batch))).to(compute.device)
                found[device] = [float(learner.step(number, images).loss) for number in range(steps)]
        first, other = next(iter(found.values())), list(found.values())[-1]
        told[name] = max(abs(a - b) / max(abs(a), 1e-9) for a, b in zip(first, other, strict=True))
    return {"largest relative difference": told, "passed": max(told.values()) < 1e-2}


def run(bench: Bench) -> Result:
    """Return where a whole short run ends on the device and on the CPU, and how alike their first selections are."""
    teacher = Teacher(build_by_name("resnet8", num_classes=CLASSES), mean=MEAN, std=STD, input_size=bench.side)
    pool, images = bench.images(300 if bench.pretend else 2_000), 128 if bench.pretend else 4_096
    told: dict[str, Any] = {}
    selected = []
    for name, device in (("cpu", "cpu"), ("device", str(bench.compute.device))):
        with tempfile.TemporaryDirectory(dir=bench.work) as folder:
            done = kd3.distill(
                teacher, "kd3:resnet8", pool, Path(folder) / "run", images=images, batch_size=64, holdout=100,
                device=device, precision="32", tf32=False, quiet=True, kd3={"selection": "dynamic"},
                recall=16 if bench.pretend else "auto",
            )  # fmt: skip
            selected.append(set(np.load(Path(folder) / "run" / "selections" / "00001.npy").tolist()))
            told[name] = {"agreement": done.agreement, "images a second": done.summary["images_per_second"]}
    both, either = len(selected[0] & selected[1]), len(selected[0] | selected[1])
    return {**told, "selections in common": round(both / either, 4), "passed": both / either > 0.95}


def bound(bench: Bench) -> Result:
    """Return what the device does in products of matrices, measured: 10^12 operations a second."""
    side = 256 if bench.pretend else 8192
    kind = bench.compute.autocast_type or torch.float32
    left = torch.randn(side, side, device=bench.compute.device, dtype=kind)
    rate = _rate(bench, lambda: left @ left)
    return {"tflops": round(2 * side**3 * rate / 1e12, 3), "type": str(kind), "side": side}


def steps(bench: Bench) -> Result:
    """Return training images a second, with steps recorded as CUDA graphs and without."""
    told: Result = {}
    for batch in bench.batches:
        pool = bench.images(batch)
        for graph in ("auto", "off"):
            compute = bench.compute
            with compute.tuned(tf32=True, deterministic=False):
                learner = bench.learner(compute, batch=batch, cuda_graph=graph)
                images = torch.from_numpy(pool.read(np.arange(batch))).to(compute.device)
                row = {"images a second": round(batch * _stepping(bench, learner, images), 1)}
                if graph == "off":
                    with FlopCounterMode(display=False) as counter:
                        learner.step(0, images)
                    told[f"operations an image, batch {batch}"] = counter.get_total_flops() / batch
                elif learner._graph is not None:
                    row["recorded"] = learner._graph.is_recorded
            told[f"batch {batch}, cuda_graph {graph}"] = row
            del learner
    return told


def large_pool(bench: Bench) -> Result:
    """Return training images a second where the pool lies on the device, and where it is read and sent."""
    batch = bench.batches[-1]
    pool, told = bench.images(batch * (4 if bench.pretend else 16)), {}
    for name, fits in (("on the device", True), ("read ahead", False)):
        learner = bench.learner(bench.compute, batch=batch)
        batches = PoolBatches(pool, bench.compute)
        batches._fits = fits
        order = np.random.default_rng(0).permutation(np.tile(np.arange(len(pool)), 2))
        for number, images in enumerate(batches.iterate(order[: 4 * batch], batch)):
            learner.step(number, images)  # until the step is recorded
        _wait(bench)
        start = time.perf_counter()
        for number, images in enumerate(batches.iterate(order, batch)):
            learner.step(number, images)
        _wait(bench)
        told[name] = round(len(order) / (time.perf_counter() - start), 1)
        del learner
    return {**told, "share": round(told["read ahead"] / told["on the device"], 3)}


def two_devices(bench: Bench) -> Result:
    """Return how far the student of two processes is from that of one process, where there are two devices."""
    if bench.devices < 2:
        return {"left out": "there is one device"}
    folder = bench.work / "two"
    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(build_by_name("resnet8", num_classes=CLASSES).state_dict(), folder / "weights.pt")
    write_json(
        folder / "teacher.yaml",
        {"arch": "kd3:resnet8", "weights": "weights.pt", "num_classes": CLASSES, "mean": MEAN, "std": STD,
         "input_size": bench.side},
    )  # fmt: skip
    np.save(folder / "images.npy", bench.images(400).read(slice(0, 400)).transpose(0, 2, 3, 1))
    kd3.ingest([str(folder / "images.npy")], folder / "pool", image_size=bench.side, workers=0, quiet=True)
    # A random start and small steps: a student that inherits this teacher whole learns nothing but roundings.
    (folder / "run.yaml").write_text(
        "{method: kd3, init: random, teacher_statistics: lost, recall: 'off', track: none, precision: '32', "
        "train: {images: 64, batch_size: 16, holdout: 20, evals: 1, optimizer: sgd, lr: 0.001, tf32: false}}"
    )
    said = _by_two_processes(bench, folder)
    if said is not None:
        return {"passed": False, "said": said}
    kd3.distill(
        folder / "teacher.yaml", "kd3:resnet8", folder / "pool", folder / "one", config=folder / "run.yaml",
        device=str(bench.compute.device), quiet=True,
    )  # fmt: skip
    summaries = {name: read_summary(folder / name) for name in ("one", "two")}
    told = {summary["compute"]: {"agreement": summary["agreement"]} for summary in summaries.values()}
    one, two = (kd3.load_student(folder / name).state_dict() for name in summaries)
    far = max(_difference(value.double(), two[name].double()) for name, value in one.items())
    return {**told, "largest relative difference": far, "passed": far < 1e-2}


def _by_two_processes(bench: Bench, folder: Path) -> str | None:
    """Distil by two processes; return their last words if they fail, or do not end in time."""
    command = [
        *(sys.executable, "-m", "kd3", "distill", "--config", folder / "run.yaml"),
        *("--teacher", folder / "teacher.yaml", "--student", "kd3:resnet8", "--pool", folder / "pool"),
        *("--out", folder / "two", "--devices", "2", "--device", bench.compute.device.type, "--quiet"),
    ]
    try:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=bench.patience)
    except subprocess.TimeoutExpired:
        return f"two processes did not end within {bench.patience:.0f} s"
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / (one.abs().max() + 1e-6))


PARTS: dict[str, Callable[[Bench], Result]] = {
    "losses": losses,
    "run": run,
    "bound": bound,
    "steps": steps,
    "large_pool": large_pool,
    "two_devices": two_devices,
}


def main() -> int:
    """Run what is missing and return the exit status: 0, or 2 where something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N")
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="folder of gpu.json and gpu.md")
    parser.add_argument("--minutes", type=float, default=9.0, help="begin nothing after so long; run again to go on")
    parser.add_argument("--pretend", action="store_true", help="all of it on the CPU, tiny: for tests")
    try:
        return 0 if measured(parser.parse_args()) else 2
    except KD3Error as problem:
        print(f"benchmarks.gpu: {problem}", file=sys.stderr)
        return 2


def measured(arguments: argparse.Namespace) -> bool:
    """Measure missing figures, write both files; return whether all checks passed.

    Raises:
        KD3Error: there is no such device, the folder cannot be written to, or holds another device's figures.
    """
    begun = time.monotonic()
    compute = resolve("cpu" if arguments.pretend else arguments.device, "auto")
    if compute.device.type == "cpu" and not arguments.pretend:
        raise KD3Error("make gpu is for a CUDA device; --pretend runs it on the CPU")
    out, about = arguments.out, machine(compute)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise KD3Error(f"--out {out} cannot be made: {problem.strerror}") from None
    known: Result = {"machine": about, "parts": {}, "seconds": {}}
    if (out / "gpu.json").is_file():
        known = json.loads((out / "gpu.json").read_text())
        if known["machine"]["compute"] != about["compute"]:
            raise KD3Error(f"{out} holds figures of {known['machine']['compute']}; choose another --out")
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(compute, Path(work), arguments.pretend)
        for name, part in PARTS.items():
            if name in known["parts"]:
                continue
            if time.monotonic() - begun > 60 * arguments.minutes:
                print(f"benchmarks.gpu: {name} is left for the next time", file=sys.stderr)
                break
            print(f"benchmarks.gpu: {name}: {(part.__doc__ or '').splitlines()[0]}", file=sys.stderr)
            with _freed(compute):
                start = time.monotonic()
                known["parts"][name] = part(bench)
                known["seconds"][name] = round(time.monotonic() - start, 1)
            write_json(out / "gpu.json", known)
            with replacing(out / "gpu.md") as page:
                page.write_text(as_page(known), encoding="utf-8")
    print(as_page(known))
    return all(part.get("passed", True) for part in known["parts"].values())


def as_page(known: Result) -> str:
    """Return the figures as Markdown."""
    about, parts = known["machine"], known["parts"]
    lines = [f"# kd3 on {about['compute']}", "", f"{about['date']}, torch {about['torch']}, kd3 {about['kd3']}.", ""]
    lines += ["| check | result | right |", "|---|---|---|"]
    for name in ("losses", "run", "two_devices"):
        if name in parts:
            values = {key: value for key, value in parts[name].items() if key != "passed"}
            right = {True: "yes", False: "**no**", None: ""}[parts[name].get("passed")]
            lines.append(f"| {name} | {json.dumps(values)} | {right} |")
    if "steps" in parts:
        peak = parts.get("bound", {}).get("tflops")
        lines += ["", "| step | images/s | TFLOP/s | of the measured bound |", "|---|---|---|---|"]
        for name, row in parts["steps"].items():
            if isinstance(row, dict):
                batch = name.partition(",")[0].removeprefix("batch ")
                done = parts["steps"][f"operations an image, batch {batch}"] * row["images a second"] / 1e12
                share = f"{done / peak:.1%}" if peak else ""
                lines.append(f"| {name} | {row['images a second']:,} | {done:.2f} | {share} |")
        lines += ["", f"Bound: {peak} TFLOP/s in one large product of matrices."]
    if "large_pool" in parts:
        lines += ["", f"A pool that is not on the device: {json.dumps(parts['large_pool'])} (images/s)."]
    return "\n".join(lines) + "\n"


def _stepping(bench: Bench, learner: Learner, images: torch.Tensor) -> float:
    number = 0

    def step() -> None:
        nonlocal number
        learner.step(number, images)
        number += 1

    return _rate(bench, step, before=6)


def _rate(bench: Bench, work: Callable[[], object], *, before: int = 2) -> float:
    """Return the number of calls per second."""
    for _ in range(before):
        work()
    _wait(bench)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < bench.seconds:
        for _ in range(1 if bench.pretend else 10):
            work()
            count += 1
        _wait(bench)
    return count / (time.perf_counter() - start)


def _wait(bench: Bench) -> None:
    if bench.compute.device.type == "cuda":
        torch.cuda.synchronize(bench.compute.device)


@contextmanager
def _freed(compute: Compute) -> Any:
    yield
    if compute.device.type == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
