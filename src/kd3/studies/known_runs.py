"""Runs made elsewhere or earlier, from a study's results.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydantic

from kd3.config.distill import DistillConfig, differences
from kd3.config.settings import RENAMED, merge
from kd3.config.training import TrainSettings
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import read_json
from kd3.studies.plan import Cell
from kd3.studies.pools import PoolDistance
from kd3.studies.table import RunResult, what_was_run

# Settings of the machine or the storage, without an effect on training.
NO_INFLUENCE = ("precision", "train.checkpoint_minutes", "train.checkpoint_steps")

# The effect of a run whose record is older than these settings.
BEFORE_INHERITANCE: Mapping[str, Any] = {
    "init": "random",
    "inherit_blocks": "even",
    "teacher_statistics": "lost",
    "teacher_blend": None,
    "recall": "off",
    "deployment": None,
    "muon_moves": "all matrices",
    "options": {"projector": "simkd"},
}


class KnownRuns:
    """Results of finished runs, and distances of their pools, from files that `kd3 study` wrote.

    Args:
        tests: the changed test images asked about, by name: change and strength. An accuracy on others of the same name
            is left out.

    Raises:
        KD3Error: a file cannot be read, or is not the results of a study.
    """

    def __init__(self, paths: Sequence[str] = (), tests: Mapping[str, tuple[str, float]] | None = None) -> None:
        self._known: list[tuple[RunResult, str]] = []
        # By the fingerprint of the teacher and the content hash of the pool.
        self.distances: dict[tuple[str | None, str | None], PoolDistance] = {}
        for path in paths:
            found = _read(Path(path))
            others = {name for name, made in found.changed_tests.items() if (tests or {}).get(name, made) != made}
            for result in found.runs:
                changed = {name: value for name, value in result.changed.items() if name not in others}
                self._known.append((replace(result, changed=changed), path))
                if result.pool in found.distances:
                    self.distances[result.run.get("teacher"), result.run.get("pool")] = found.distances[result.pool]

    def all(self) -> list[RunResult]:
        """Return every result, in the order of the files."""
        return [result for result, _ in self._known]

    def distance(self, teacher: str, pool: str) -> PoolDistance | None:
        """Return the recorded distance of a pool, by content hash, from this teacher's training data."""
        return self.distances.get((teacher, pool))

    def find(self, cell: Cell, wanted: DistillConfig, *, teacher: str, pool: str) -> tuple[RunResult | None, str]:
        """Return the result of a run with the same settings, teacher and pool, under any row's name.

        If there is only one of this row and seed with other settings: None, and the differences in words.
        """
        asked = what_was_run(wanted, teacher=teacher, pool=pool)
        why_not = ""
        for result, path in self._known:
            # A setting that did not exist then had the effect of its present default.
            done = merge(_defaults(wanted), BEFORE_INHERITANCE, result.run)
            done = {name: value for name, value in done.items() if name in asked}
            done["options"] = {name: value for name, value in done["options"].items() if name in asked["options"]}
            differing = [found for found in differences(asked, done) if found[0] not in NO_INFLUENCE]
            if not differing:
                return replace(result, row=cell.row, series=cell.series, x=cell.x, pool=cell.pool), ""
            if (result.row, result.seed) == (cell.row, cell.seed) and not why_not:
                name, now, then = differing[0]
                why_not = f"{path} tells of {name} {then!r}, not {now!r}"
        return None, why_not


def _defaults(config: DistillConfig) -> dict[str, Any]:
    train = TrainSettings().model_dump(mode="json")
    return {"train": train, "options": type(config.method_options)().model_dump(mode="json")}


@dataclass(frozen=True)
class _Results:
    """The part of a results.json that is read."""

    runs: list[RunResult]
    distances: dict[str, PoolDistance]
    changed_tests: dict[str, tuple[str, float]]  # earlier versions did not write them


_RESULTS = pydantic.TypeAdapter(_Results)


def _read(path: Path) -> _Results:
    try:
        if not path.is_file():
            raise KD3Error(f"--known {path} cannot be read: there is no such file")
        values = read_json(path)
        return _RESULTS.validate_python(
            {
                "runs": [_with_new_names(run) for run in values["runs"]],
                "distances": values.get("distances") or {},
                "changed_tests": values.get("changed_tests") or {},
            }
        )
    except pydantic.ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise KD3Error(
            f"--known {path} does not hold what a study writes as results.json: {where}: {first['msg']}"
        ) from None
    except (KeyError, TypeError, AttributeError):
        raise KD3Error(f"--known {path} does not hold what a study writes as results.json") from None


def _with_new_names(run: Mapping[str, Any]) -> dict[str, Any]:
    made = run["run"]
    train = {RENAMED.get(name, name): value for name, value in made.get("train", {}).items()}
    return {**run, "run": {**made, "train": train}}
