"""Measure the time until a student agrees with its teacher: `python -m benchmarks.time_to_agreement RUN...`.

Reads the metrics of finished runs. For each it prints the seconds of training and selection up to the first
evaluation on held-out images whose agreement reaches the target: by default the mean final agreement of the plain KD
runs given. No labels are used.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import yaml

from kd3.runtime.errors import KD3Error


@dataclass(frozen=True)
class RunLooks:
    """A run, and its evaluations on held-out images: (seconds, images, agreement in percent)."""

    folder: Path
    group: str  # method and budget
    looks: list[tuple[float, int, float]]

    def first_at(self, target: float) -> tuple[float, int] | None:
        """Return seconds and images of the first evaluation at or above the target; None if there is none."""
        return next(((seconds, images) for seconds, images, agreement in self.looks if agreement >= target), None)


def read(folder: Path) -> RunLooks:
    """Return a run's evaluations.

    Raises:
        KD3Error: it is no run, or has no evaluation yet.
    """
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text())
        events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError) as problem:
        raise KD3Error(f"{folder} is no run: {problem}") from None
    looks = [(e["seconds"], e["images"], e["agreement"]) for e in events if e["event"] == "evaluation"]
    if not looks:
        raise KD3Error(f"the run {folder} has not looked at its held-out images yet")
    return RunLooks(folder, f"{config['method']}, {looks[-1][1]:,} images", looks)


def table(runs: list[RunLooks], target: float | None) -> str:
    """Return the lines to print.

    Raises:
        KD3Error: no target is given and none of the runs is plain KD.
    """
    plain = [run for run in runs if run.group.startswith("kd,")]
    if target is None:
        if not plain:
            raise KD3Error("none of the runs has method kd, whose agreement would be the target; give --target")
        target = statistics.mean(run.looks[-1][2] for run in plain)
    lines = [f"target: {target:.1f}% agreement with the teacher on held-out pool images"]
    groups = defaultdict(list)
    for run in runs:
        reached = run.first_at(target)
        told = f"{reached[0]:,.0f} s, {reached[1]:,} images" if reached else "not reached"
        lines.append(f"  {run.folder}: {told} (ends with {run.looks[-1][2]:.1f}% after {run.looks[-1][0]:,.0f} s)")
        groups[run.group].append(reached[0] if reached else None)
    whole = statistics.mean(run.looks[-1][0] for run in plain) if plain else None
    if whole:
        lines.append(f"plain KD's whole run: {whole:,.0f} s on average")
    for group, seconds in groups.items():
        there = [s for s in seconds if s is not None]
        if there:
            spread = f" +- {statistics.stdev(there):,.0f}" if len(there) > 1 else ""
            ratio = f"; plain KD's whole run takes {whole / statistics.mean(there):.2f} times as long" if whole else ""
            found = f"{len(there)} of {len(seconds)} runs"
            lines.append(f"{group}: {statistics.mean(there):,.0f}{spread} s ({found}){ratio}")
    return "\n".join(lines)


def main() -> int:
    """Print the table and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.time_to_agreement", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--target", type=float, metavar="PERCENT", help="default: what plain KD's runs end with")
    arguments = parser.parse_args()
    try:
        print(table([read(folder) for folder in arguments.runs], arguments.target))
    except KD3Error as problem:
        print(f"benchmarks: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
