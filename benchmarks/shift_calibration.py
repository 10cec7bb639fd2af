"""Calibrate the verdict of `kd3 shift`: `python -m benchmarks.shift_calibration [--out FILE] [RESULTS...]`.

Reads results.json files of studies and `docs/results/shift/measured.json` (accuracies of teachers, sizes of pools,
distances that no study measured) and fits the curve of `kd3.evaluation.shift_verdict`. A point is a pool at a budget
with the mean accuracy of KD3's default, after recall: of a file's KD3 runs those with the settings that most of them
share. Each pool is then left out in turn and foretold from the others: a table on standard output.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

from kd3.evaluation.shift_verdict import FEW, Calibration, evenness, forecast
from kd3.runtime.errors import KD3Error

RESULTS = [
    Path("docs/results/inherit-fit-recall/results.json"),
    Path("docs/results/table1/results-200k.json"),
    Path("docs/results/shift/near-and-far.json"),
    Path("docs/results/shift/styles.json"),
]
MEASURED = Path("docs/results/shift/measured.json")
OUT = Path("src/kd3/evaluation/calibration.json")
# Settings that may differ among the runs of one default: budget and pool.
AMOUNT = ("images", "epochs", "share", "fixed_views", "evals", "looks", "holdout", "batch_norm", "compile_teacher")
SAME = ("student", "student_args", "init", "teacher_statistics", "recall")
TENTHS = (10, 90)  # percentiles that bound the range
# A pool of fewer than FEW images and farther than this is outside of the curve, which has one such pool to go by.
NEAR = 0.1
NO_SPREAD = (1.0, 1.0)
HEADS = "| pool | its images | fixed views | trained on | distance | effective classes | reached | foretold | range |"


@dataclass(frozen=True)
class Point:
    """Runs of KD3's default on one pool at one budget."""

    pool: str
    content: str
    teacher: str
    distance: float
    effective_classes: float
    classes: int
    images: int  # training images of the pool
    fixed_views: int
    trained: int
    accuracy: float  # mean over seeds, as a share of the teacher's
    seeds: int

    @property
    def views(self) -> float:
        """One over the number of different views, where it is fixed: a handicap of the run, not of the pool."""
        return 1 / (self.images * self.fixed_views) if self.fixed_views else 0.0


def points(paths: list[Path], measured: dict[str, Any]) -> list[Point]:
    """Return the points of studies whose pools have a known distance.

    Raises:
        KD3Error: a file has no run of KD3, or there are too few points to fit a curve.
    """
    files = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    distances = {(one["teacher"], one["pool"]): one for one in measured["distances"]}
    for values in files:
        for run in values["runs"]:
            if run["pool"] in values.get("distances", {}):
                distances[run["run"]["teacher"], run["run"]["pool"]] = values["distances"][run["pool"]]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for path, values in zip(paths, files, strict=True):
        runs = [run for run in values["runs"] if run["method"] == "kd3" and run["accuracy"] is not None]
        if not runs:
            raise KD3Error(f"{path} tells of no run of KD3")
        settings = [run["run"] for run in runs]
        default = max(settings, key=lambda one: sum(_alike(one, other) for other in settings))
        for run in runs:
            made = run["run"]
            if _alike(made, default) and (made["teacher"], made["pool"]) in distances:
                key = made["teacher"], made["pool"], run["images"], made["train"].get("share", 1.0), _views(made)
                groups.setdefault(key, []).append(run)
    found = [_point(key, runs, distances, measured) for key, runs in groups.items()]
    found = [point for point in found if point.images >= FEW or point.distance <= NEAR]
    if len({point.content for point in found}) < len(Calibration.__dataclass_fields__):
        raise KD3Error(f"{len(found)} points are too few for a curve; give more studies that measured their pools")
    return found


def _alike(made: dict[str, Any], first: dict[str, Any]) -> bool:
    """Return whether settings are equal except for amounts; a setting only in newer runs had its default before."""
    if any(name in made and name in first and made[name] != first[name] for name in SAME):
        return False
    for group in ("options", "train"):
        common = made[group].keys() & first[group].keys() - set(AMOUNT)
        if any(made[group][name] != first[group][name] for name in common):
            return False
    return True


def _views(made: dict[str, Any]) -> int:
    return int(made["train"].get("fixed_views", 0))


def _point(
    key: tuple[Any, ...], runs: list[dict[str, Any]], distances: dict[Any, Any], measured: dict[str, Any]
) -> Point:
    teacher, content, trained, share, fixed_views = key
    held = measured["images"].get(content, measured["images_of_others"])
    # A seed may occur in two studies.
    accuracies = {run["seed"]: run["accuracy"] for run in runs}
    return Point(
        pool=runs[0]["pool"],
        content=content,
        teacher=teacher,
        distance=distances[teacher, content]["batch_norms_mean"],
        effective_classes=distances[teacher, content]["effective_classes"],
        classes=measured["classes"],
        images=round((held - min(1000, held // 10)) * share),
        fixed_views=fixed_views,
        trained=trained,
        accuracy=statistics.mean(accuracies.values()) / measured["teachers"][teacher]["accuracy"],
        seeds=len(accuracies),
    )


def fitted(found: list[Point], zero: float) -> tuple[Calibration, float]:
    """Return the curve through points and the weight of fixed views; least squares of accuracies, no weight below 0."""
    columns = [
        [1, max(p.distance - zero, 0), np.log(p.classes / p.effective_classes), 1 / p.trained, 1 / p.images, p.views]
        for p in found
    ]
    share = np.array([p.accuracy for p in found])
    scale = np.array([1, 1, 1, 1e5, 1e2, 1e2])
    # A small error of the logarithm is one of accuracy times the accuracy.
    weights, _ = nnls(np.array(columns) * scale * share[:, None], -np.log(share) * share)
    student, distance, classes, budget, pool, views = (float(weight) for weight in weights * scale)
    reach = (
        max(p.distance for p in found),
        min(evenness(p.effective_classes, p.classes) for p in found),
        max((p.distance for p in found if p.images < FEW), default=0.0),
    )
    return Calibration(zero, student, distance, classes, budget, pool, NO_SPREAD, *reach), views


def _foretold(point: Point, curve: Calibration, views: float) -> float:
    said = forecast(
        point.distance,
        point.effective_classes,
        classes=point.classes,
        images=point.images,
        trained=point.trained,
        calibration=curve,
    )
    return float(said.expected * np.exp(-views * point.views))


def left_out(found: list[Point], zero: float) -> list[tuple[Point, float]]:
    """Return each point with the accuracy foretold from the points of all other pools."""
    answers = []
    for point in found:
        others = [other for other in found if other.content != point.content]
        answers.append((point, _foretold(point, *fitted(others, zero))))
    return answers


def calibrated(found: list[Point], zero: float) -> tuple[Calibration, list[tuple[Point, float]]]:
    """Return the curve with its spread, and its test."""
    tested = left_out(found, zero)
    factors = [float(np.log(point.accuracy) / np.log(said)) for point, said in tested]
    low, high = np.percentile(factors, TENTHS)
    return replace(fitted(found, zero)[0], spread=(float(low), float(high))), tested


def errors(curve: Calibration, tested: list[tuple[Point, float]]) -> dict[str, float]:
    """Return the numbers of points and pools, and the errors on pools left out, in points of accuracy."""
    off = [100 * abs(said - point.accuracy) for point, said in tested]
    ranges = [_range(curve, said) for _, said in tested]
    return {
        "points": len(tested),
        "pools": len({point.content for point, _ in tested}),
        "mean_error": round(float(np.mean(off)), 1),
        "root_mean_square": round(float(np.sqrt(np.mean(np.square(off)))), 1),
        "largest_error": round(max(off), 1),
        "inside": sum(low <= point.accuracy <= high for (low, high), (point, _) in zip(ranges, tested, strict=True)),
    }


def _range(curve: Calibration, said: float) -> tuple[float, float]:
    low, high = (float(said**factor) for factor in reversed(curve.spread))
    return low, high


def table(curve: Calibration, tested: list[tuple[Point, float]]) -> str:
    """Return a Markdown table of left-out pools and the error."""
    lines = [HEADS, "|" + "---|" * 9]
    for point, said in sorted(tested, key=lambda pair: -pair[0].accuracy):
        low, high = _range(curve, said)
        cells = [
            point.pool,
            f"{point.images:,}",
            str(point.fixed_views or ""),
            f"{point.trained:,}",
            f"{point.distance:.3f}",
            f"{point.effective_classes:.1f}",
            f"{100 * point.accuracy:.1f}",
            f"{100 * said:.1f}",
            f"{100 * low:.0f} to {100 * high:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    off = errors(curve, tested)
    lines.append(
        f"\n{off['points']} points of {off['pools']} pools: mean error {off['mean_error']} points, root of the mean "
        f"square {off['root_mean_square']}, largest {off['largest_error']}; {off['inside']} lie in their range."
    )
    return "\n".join(lines)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shift_calibration", description=__doc__)
    parser.add_argument("results", nargs="*", type=Path, default=RESULTS, help="results.json of studies")
    parser.add_argument("--measured", type=Path, default=MEASURED)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    try:
        measured = json.loads(given.measured.read_text(encoding="utf-8"))
        found = points(given.results, measured)
    except KD3Error as problem:
        print(f"benchmarks: {problem}", file=sys.stderr)
        return 2
    curve, tested = calibrated(found, statistics.mean(measured["original_distances"]))
    about = {
        "made_by": "python -m benchmarks.shift_calibration",
        "from": [str(path) for path in (*given.results, given.measured)],
        "curve": {name: _rounded(value) for name, value in vars(curve).items()},
        "left_out": errors(curve, tested),
        "points": [{name: _rounded(value) for name, value in vars(point).items()} for point, _ in tested],
    }
    given.out.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    print(table(curve, tested))
    return 0


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
