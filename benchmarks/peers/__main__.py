"""kd3 beside other projects: `python -m benchmarks.peers DATA --out OUT [--rows torchdistill,kd3] [--seeds 0,1,2]`.

DATA holds crawl/*.tar, teacher/resnet56_cifar10jpeg.pt and original_test.zip. Every row trains a ResNet-20 on as many
images, one thread, without network where `unshare -n` is permitted, one row after the other for each seed. `kd3
evaluate` judges all students. OUT/results.jsonl keeps each run, and a run that is in it is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "src"
TORCH = ("torch==2.13.0", "torchvision==0.28.0")
PACKAGES = {"torchdistill": "torchdistill==1.1.5", "lightly-train": "lightly-train==0.18.0"}
SCRIPTS = {"torchdistill": HERE / "with_torchdistill.py", "lightly-train": HERE / "with_lightly_train.py"}
PUBLISHED = ("--init", "random", "--teacher-statistics", "lost", "--recall", "off")
KD3: dict[str, tuple[str, ...]] = {
    "kd3": (),
    "kd3 --method simkd": ("--method", "simkd", *PUBLISHED),
    "kd3 --method kd": ("--method", "kd", *PUBLISHED),
}
ROWS = ("torchdistill", "kd3", "lightly-train", "kd3 --method simkd", "kd3 --method kd")
# A CPU build of torch has no torchvision of its own; the other's compiled operators, unused here, cannot be loaded.
STAND_INS = """import torch
for name in ("nms", "qnms"):
    torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def description(arch: str, weights: Path) -> dict[str, Any]:
    """Return what kd3 must know of a network; as a file, it is a line for each entry."""
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    preparation = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "input_size": 32}
    return {"arch": arch, "weights": str(weights), "num_classes": 10, "classes": classes, **preparation}


def lines_to_write(row: str) -> int:
    """Return the lines of code, without blank ones, comments and docstrings; for kd3 a YAML file and two commands."""
    if row in KD3:
        return len(description("", Path())) + 2
    is_text, lines = False, 0
    for line in map(str.strip, SCRIPTS[row].read_text().splitlines()):
        quotes = line.count('"""')
        lines += bool(line) and not line.startswith("#") and not is_text and not quotes
        is_text ^= quotes == 1
    return lines


def environment(row: str, out: Path, python: str) -> Path:
    """Return the interpreter of the peer's own environment, which is made if it is absent."""
    folder = out / f"venv-{row}"
    own = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([own, "-m", "pip", "install", "--quiet", *TORCH[:1], PACKAGES[row]], check=True)
        subprocess.run([own, "-m", "pip", "install", "--quiet", "--no-deps", TORCH[1]], check=True)
        if subprocess.run([own, "-c", "import torchvision"], capture_output=True).returncode:
            (next(folder.glob("lib/python*/site-packages")) / "sitecustomize.py").write_text(STAND_INS)
        (folder / ".ready").touch()
    return own


def measured(command: list[str], log: Path) -> dict[str, Any]:
    """Run a command to its end; return its seconds, CPU seconds and peak memory (MB)."""
    quiet = {"OMP_NUM_THREADS": "1", "LIGHTLY_TRAIN_EVENTS_DISABLED": "1", "PYTHONPATH": str(SOURCES)}
    has_unshare = shutil.which("unshare") and not subprocess.run(["unshare", "-n", "true"]).returncode
    apart = ["unshare", "-n"] if has_unshare else []
    start = time.perf_counter()
    with log.open("w") as output:
        child = subprocess.Popen([*apart, *command], stdout=output, stderr=output, env={**os.environ, **quiet})
        _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed; see {log}")
    kilobyte = 1 if sys.platform == "darwin" else 1024
    figures = {"seconds": time.perf_counter() - start, "cpu": usage.ru_utime + usage.ru_stime}
    return {**figures, "peak": usage.ru_maxrss * kilobyte / 1e6, "network": "off" if apart else "on"}


def run(row: str, seed: int, images: int, place: argparse.Namespace) -> dict[str, Any]:
    """Train and judge one student; return the figures."""
    kd3 = [sys.executable, "-m", "kd3"]
    weights = place.data / "teacher" / "resnet56_cifar10jpeg.pt"
    out = place.out / f"{row.split()[-1]}-{images}-{seed}"
    shutil.rmtree(out, ignore_errors=True)
    if row in KD3:
        for kept in (place.out / "pool").glob("teacher_*"):  # results of earlier runs, which the peers do not have
            shutil.rmtree(kept)
        teacher = place.out / "teacher.yaml"
        teacher.write_text(yaml.safe_dump(description("kd3:resnet56", weights)))
        command = [*kd3, "distill", "--teacher", str(teacher), "--student", "kd3:resnet20", *KD3[row]]
        command += ["--pool", str(place.out / "pool")]
        model = out
    else:
        command = [str(environment(row, place.out, place.python)), str(SCRIPTS[row])]
        command += ["--teacher", str(weights), "--crawl", str(place.out / "crawl")]
        model = out / "student.yaml"
    command += ["--images", str(images), "--seed", str(seed), "--out", str(out)]
    figures = measured(command, place.out / f"{out.name}.log")
    if row not in KD3:
        model.write_text(yaml.safe_dump(description("kd3:resnet20", out / "student.pt")))
    judge = [*kd3, "evaluate", str(model), "--data", str(place.data / "original_test.zip"), "--json"]
    judged = subprocess.run(
        judge, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(SOURCES)}
    )
    return {"row": row, "seed": seed, "images": images, **figures, "accuracy": json.loads(judged.stdout)["top1"]}


def prepare(place: argparse.Namespace) -> None:
    """Make the crawl's files for the peers and the pool for kd3."""
    place.out.mkdir(parents=True, exist_ok=True)
    shards = sorted((place.data / "crawl").glob("*.tar"))
    if not (place.out / "crawl").exists():
        for shard in shards:
            with tarfile.open(shard) as archive:
                archive.extractall(place.out / "unpacked" / "images", filter="data")
        (place.out / "unpacked").rename(place.out / "crawl")
    if not (place.out / "pool" / "manifest.json").exists():
        command = [sys.executable, "-m", "kd3", "ingest", *map(str, shards), "--out", str(place.out / "pool")]
        figures = measured([*command, "--image-size", "32"], place.out / "ingest.log")
        print(f"kd3 ingest: {figures['cpu']:.1f} CPU s, {figures['peak']:.0f} MB in one process")


def table(runs: list[dict[str, Any]], images: int) -> str:
    """Return the figures as a Markdown table: means, the accuracy's deviation, the rate without the start-up."""
    lines = ["| row | accuracy | images per CPU s | CPU s | peak MB | lines |", "|---|---|---|---|---|---|"]
    for row in dict.fromkeys(entry["row"] for entry in runs):
        whole = [entry for entry in runs if entry["row"] == row and entry["images"] == images]
        short = [entry for entry in runs if entry["row"] == row and entry["images"] < images]
        if not whole:
            continue
        accuracy = [entry["accuracy"] for entry in whole]
        deviation = f" ± {statistics.stdev(accuracy):.1f}" if len(accuracy) > 1 else ""
        cpu = statistics.mean(entry["cpu"] for entry in whole)
        rate = f"{(images - short[0]['images']) / (cpu - short[0]['cpu']):.0f}" if short else ""
        peak = max(entry["peak"] for entry in whole)
        mean = statistics.mean(accuracy)
        lines.append(f"| {row} | {mean:.1f}{deviation} | {rate} | {cpu:.0f} | {peak:.0f} | {lines_to_write(row)} |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=6_400, help="training images of a run")
    parser.add_argument("--short", type=int, help="those of the run that shows the start-up (default: a tenth)")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"some of: {', '.join(ROWS)}")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the peers' environments")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run what has not run yet, and print the table."""
    place = parser().parse_args(arguments)
    place.data, place.out = place.data.resolve(), place.out.resolve()
    rows = place.rows.split(",")
    if unknown := set(rows) - set(ROWS):
        raise SystemExit(f"--rows names {', '.join(sorted(unknown))}; there are: {', '.join(ROWS)}")
    seeds = [int(seed) for seed in place.seeds.split(",")]
    prepare(place)
    kept = place.out / "results.jsonl"
    runs = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    known = {(entry["row"], entry["seed"], entry["images"]) for entry in runs}
    wanted = [(row, seeds[0], place.short or place.images // 10) for row in rows]
    wanted += [(row, seed, place.images) for seed in seeds for row in rows]
    for row, seed, images in wanted:
        if (row, seed, images) not in known:
            runs.append(run(row, seed, images, place))
            with kept.open("a") as file:
                file.write(json.dumps(runs[-1]) + "\n")
            print({name: round(value, 1) if isinstance(value, float) else value for name, value in runs[-1].items()})
    print(table(runs, place.images))


if __name__ == "__main__":
    main()
