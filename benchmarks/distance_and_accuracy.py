"""Correlate a pool's distance with accuracy: `python -m benchmarks.distance_and_accuracy RESULTS...`.

Reads the results.json files of studies that measured their pools (`measure_shift`). A point is a pool, or a random
part of one (`--share`), with the mean accuracy over the seeds that learned from it; a part is as far as its pool is.
Pools are told apart by content. Spearman's rank correlation for each method and measure.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from kd3.runtime.errors import KD3Error
from kd3.studies.known_runs import KnownRuns
from kd3.studies.pools import Correlation, PoolDistance, correlations


def foretold(paths: list[Path]) -> list[Correlation]:
    """Return the rank correlations over all runs of the files whose pool was measured.

    Raises:
        KD3Error: a file is no study's results, or none of them measured its pools.
    """
    records = KnownRuns([str(path) for path in paths])
    distances = {pool: distance for (_, pool), distance in records.distances.items()}
    if not distances:
        raise KD3Error("none of these studies measured its pools; give those with measure_shift: true, such as type")
    places = {}
    points = []
    for run in records.all():
        content, share = run.run["pool"], run.run["train"].get("share", 1.0)
        if content in distances:
            place = content if share == 1.0 else f"{content} {share}"
            places[place] = distances[content]
            points.append(replace(run, pool=place))
    return correlations(points, places)


def table(found: list[Correlation]) -> str:
    """Return a Markdown table: a row for each method, a column for each measure."""
    measures = [field.name for field in fields(PoolDistance)]
    cells: dict[str, dict[str, Any]] = {}
    for one in found:
        cells.setdefault(f"{one.method} | {one.pools}", {})[one.measure] = f"{one.rho:+.2f} (p {one.p:.2g})"
    lines = ["method | pools | " + " | ".join(name.replace("_", " ") for name in measures)]
    lines.append(" | ".join(["---"] * (len(measures) + 2)))
    lines += [f"{row} | " + " | ".join(values.get(name, "") for name in measures) for row, values in cells.items()]
    return "\n".join(f"| {line} |" for line in lines)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distance_and_accuracy", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, help="results.json of studies")
    try:
        print(table(foretold(parser.parse_args().results)))
    except KD3Error as problem:
        print(f"benchmarks: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
