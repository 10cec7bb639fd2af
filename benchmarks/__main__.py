"""Measure, write a dated JSON and a Markdown page, and print the page: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kd3.runtime.errors import KD3Error

GROUPS = {
    "startup": "kd3 --help and an argument's error: seconds, and whether torch is imported",
    "step": "a training step: the common way, the paper's recipe and the default in kd3, and the bare bounds",
    "scoring": "scoring the pool: the common way, the first and the later passes of kd3, and the bare forward",
    "epoch": "whole epochs of a real run with their selections, beside bare steps",
    "evaluation": "labelled images, beside the bare forward",
    "ingest": "64 x 64 and 500 x 375 JPEGs in shards, beside bare decoding in as many processes",
    "memory": "anonymous memory that an image more in the pool costs a distillation",
    "scaling": "pools of a thousand to a million images: time an image, peak memory; 1 and 2 workers",
}


def main() -> int:
    """Run the requested groups and return the exit status."""
    arguments = _parser().parse_args()
    try:
        print(run(arguments))
    except KD3Error as problem:
        print(f"benchmarks: {problem}", file=sys.stderr)
        return 2
    return 0


def run(arguments: argparse.Namespace) -> str:
    """Measure, write both files and return the page.

    Raises:
        KD3Error: an unknown group, an absent device, missing data, an output
            that cannot be written.
    """
    chosen = [name for name in arguments.only.split(",") if name] if arguments.only else list(GROUPS)
    unknown = [name for name in chosen if name not in GROUPS]
    if unknown:
        raise KD3Error(f"unknown group {unknown[0]!r} in --only; allowed: {', '.join(GROUPS)}")
    from kd3.runtime.compute import resolve

    compute = resolve(arguments.device, arguments.precision)
    if arguments.data is not None and not arguments.data.is_dir():
        raise KD3Error(f"--data {arguments.data} is not a folder")
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / ".writable").write_text("")
        (arguments.out / ".writable").unlink()
    except OSError as problem:
        raise KD3Error(f"--out {arguments.out} cannot be written to: {problem.strerror}") from None

    from benchmarks.context import Context
    from benchmarks.machine import machine
    from benchmarks.report import markdown

    results: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as work:
        context = Context(Path(work), arguments.data, compute, arguments.quick)
        for name in chosen:
            print(f"benchmarks: {name}: {GROUPS[name]}", file=sys.stderr)
            start = time.perf_counter()
            results[name] = _group(name)(context)
            seconds[name] = round(time.perf_counter() - start, 1)
            print(f"benchmarks: {name}: {seconds[name]} s", file=sys.stderr)
        material = context.material.name if "material" in context.__dict__ else "no images"
    about = machine(compute)
    page = markdown(about, material, results)
    stem = arguments.out / about["date"].replace(":", "")[:17]  # type: ignore[attr-defined]
    values = {"machine": about, "material": material, "seconds": seconds, "results": results}
    stem.with_suffix(".json").write_text(json.dumps(values, indent=2) + "\n")
    stem.with_suffix(".md").write_text(page)
    print(f"benchmarks: written to {stem}.json and .md", file=sys.stderr)
    return page


def _group(name: str) -> Any:
    from importlib import import_module

    home = {"step": "training", "scoring": "training", "epoch": "training", "evaluation": "training"}
    home |= {"memory": "growth", "scaling": "growth"}
    return getattr(import_module(f"benchmarks.{home.get(name, name)}"), name)


def _parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:<11} {what}" for name, what in GROUPS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="How fast kd3 is, beside the common way and beside the bare cost of the same mathematics.",
        epilog=f"groups:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="short turns, small pools: under two minutes")
    parser.add_argument("--only", metavar="A,B", help="groups to run (default: all)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--precision", default="auto", choices=["auto", "32", "bf16", "16"], help="of kd3 and the bounds"
    )
    parser.add_argument("--data", type=Path, help="folder with crawl/*.tar and teacher/ (default: made here)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the two files")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
