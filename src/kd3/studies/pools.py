"""Pools of a study, their distances from the training data, and the students' accuracy on changed test images."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from kd3.evaluation.compatibility import fitted
from kd3.evaluation.labelled import LabelledImages
from kd3.evaluation.shift_measure import measure
from kd3.models.student_files import WEIGHTS, load_student
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool, derive_pool
from kd3.pool.checks import watched
from kd3.pool.image_pool import at_size
from kd3.pool.pool_files import sha256_of
from kd3.runtime import console
from kd3.runtime.compute import Compute
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import read_json, write_json
from kd3.runtime.run_folder import RunFolder
from kd3.runtime.text import escaped, table
from kd3.scoring.batches import PoolBatches
from kd3.scoring.teacher_cache import teacher_logits
from kd3.studies.plan import Cell, PoolRecipe
from kd3.studies.runs import StudyFolder
from kd3.studies.table import RunResult


def make_pools(
    folder: Path, recipes: Mapping[str, PoolRecipe], given: Mapping[str, ImagePool], teacher: Teacher, compute: Compute
) -> dict[str, ImagePool]:
    """Return all pools by name; missing ones are made under `folder`.

    Raises:
        KD3Error: a pool cannot be made, or was made by another recipe.
    """
    pools = dict(given)

    def find(name: str) -> ImagePool:
        if name not in pools:
            pools[name] = made(folder / name, recipes[name])
        return pools[name]

    def made(out: Path, recipe: PoolRecipe) -> ImagePool:
        source = find(recipe.source)
        without = _without(source, recipe, teacher, compute)
        if not out.exists():
            console.info(f"making pool {out.name}")
        return derive_pool(
            source,
            out,
            share=recipe.share,
            change=recipe.change,
            strength=recipe.strength,
            without=without,
            mixed_with=find(recipe.mixed_with) if recipe.mixed_with else None,
            mixed_share=recipe.mixed_share,
        )

    return {name: find(name) for name in [*given, *recipes]}


def _without(source: ImagePool, recipe: PoolRecipe, teacher: Teacher, compute: Compute) -> np.ndarray | None:
    """Return the images predicted as one of the excluded classes."""
    left_out = recipe.without_classes
    if not left_out:
        return None
    names = teacher.classes
    if isinstance(left_out, int):
        if left_out >= len(names):
            raise KD3Error(f"a pool of the study leaves out {left_out} of {len(names)} classes; at least one must stay")
        left_out = names[:left_out]
    for name in left_out:
        if name not in names:
            raise KD3Error(f"a pool of the study leaves out class {name!r}; the teacher's are: {', '.join(names)}")
    compute.place(teacher)
    logits = teacher_logits(teacher, PoolBatches(source.at(teacher.input_size or source.image_size), compute), compute)
    chosen = torch.tensor([names.index(name) for name in left_out])
    predicted = torch.cat(
        [torch.from_numpy(np.array(part)).argmax(1) for part in np.array_split(logits, _parts(logits))]
    )
    return torch.isin(predicted, chosen).nonzero().flatten().numpy()


def _parts(logits: np.ndarray) -> int:
    return max(1, len(logits) // 65_536)


def check_given(given: Mapping[str, ImagePool], teacher: Teacher) -> None:
    """Refuse pools that do not fit the teacher or one another, before the first run.

    Raises:
        KD3Error: images that are smaller than the teacher's.
    """
    for name, pool in given.items():
        if teacher.input_size is not None:
            at_size(pool, teacher.input_size, who="the teacher", where=f"the {name} pool {pool.path}")


FEWEST_POOLS = 4  # three points are in order too often by chance


@dataclass(frozen=True)
class PoolDistance:
    """Figures of `kd3 shift` for a pool without a reference."""

    batch_norms_last: float  # scale-free squared 2-Wasserstein distance, mean of the last layers
    batch_norms_mean: float  # of all layers
    confident_share: float  # of images above the teacher's confidence 0.95
    kept_share: float  # kept by KD3's selection at the start
    effective_classes: float  # exp of the entropy of the predicted classes


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation over the pools of a study."""

    method: str
    measure: str
    rho: float
    p: float
    pools: int


def pool_distances(
    folder: Path,
    pools: Mapping[str, ImagePool],
    teacher: Teacher,
    compute: Compute,
    recorded: Callable[[str], PoolDistance | None] = lambda _: None,
) -> dict[str, PoolDistance]:
    """Return each pool's distance, measured once and stored in the folder; none without batch norms in the teacher.

    Args:
        recorded: distances measured elsewhere, by content hash of the pool.
    """
    found: dict[str, PoolDistance] = {}
    compute.place(teacher)
    for name, pool in pools.items():
        if (before := recorded(pool.content_hash)) is not None:
            found[name] = before
            continue
        path = folder / f"{name}.json"
        kept = read_json(path) if path.is_file() else {}
        seeing, pool = fitted(teacher, pool)
        if kept.get("content_hash") != pool.identity:
            console.info(f"measuring the shift of pool {name}")
            with watched(pool, to_the_end=True):
                measured = measure(seeing, pool, None, compute, limit=len(pool), seed=0)
            if measured.batch_norms is None:
                return {}
            distance = PoolDistance(
                batch_norms_last=measured.batch_norms.last,
                batch_norms_mean=measured.batch_norms.mean,
                confident_share=measured.opinions.confident_share,
                kept_share=measured.kept.share,
                effective_classes=measured.opinions.effective_classes,
            )
            folder.mkdir(parents=True, exist_ok=True)
            kept = {"content_hash": pool.identity, **asdict(distance)}
            write_json(path, kept)
        found[name] = PoolDistance(**{field.name: kept[field.name] for field in fields(PoolDistance)})
    return found


def correlations(results: Sequence[RunResult], distances: Mapping[str, PoolDistance]) -> list[Correlation]:
    """Return, for each method run on enough pools, the rank correlation of each measure with the mean accuracy."""
    found = []
    for method in dict.fromkeys(result.method for result in results):
        reached: dict[str, list[float]] = {}
        for result in results:
            if result.method == method and result.accuracy is not None and result.pool in distances:
                reached.setdefault(result.pool, []).append(result.accuracy)
        if len(reached) < FEWEST_POOLS:
            continue
        accuracy = [statistics.mean(values) for values in reached.values()]
        for field in fields(PoolDistance):
            values = [getattr(distances[pool], field.name) for pool in reached]
            if len(set(values)) > 1 and len(set(accuracy)) > 1:
                answer = spearmanr(values, accuracy)
                measured = (float(answer.statistic), float(answer.pvalue))
                found.append(Correlation(method, field.name, *measured, len(reached)))
    return found


def page(distances: Mapping[str, PoolDistance], found: Sequence[Correlation]) -> list[str]:
    """Return Markdown paragraphs: the distances, and their correlation with accuracy."""
    if not distances:
        return []
    names = [field.name.replace("_", " ") for field in fields(PoolDistance)]
    rows = [["pool", *names]]
    rows += [
        [escaped(pool), *(f"{value:.3g}" for value in asdict(distance).values())]
        for pool, distance in distances.items()
    ]
    text = ["How far the pools are, by `kd3 shift` without a reference:\n\n" + table(rows)]
    if found:
        rows = [["method", "measure", "Spearman's rho", "p", "pools"]]
        rows += [[c.method, c.measure.replace("_", " "), f"{c.rho:+.2f}", f"{c.p:.2g}", str(c.pools)] for c in found]
        text.append("Does it foretell the accuracy? Rank correlation over the pools of this study:\n\n" + table(rows))
    return text


class ChangedTests:
    """Labelled images under each change of the study, by name; empty without labelled images."""

    def __init__(
        self, tests: Mapping[str, tuple[str, float]], eval_data: str | None, study_folder: StudyFolder, compute: Compute
    ) -> None:
        self.tests = dict(tests) if eval_data else {}
        self.eval_data, self.study_folder, self.compute = str(eval_data), study_folder, compute
        self._data: dict[tuple[str, float], LabelledImages] = {}

    def accuracy(self, cell: Cell) -> dict[str, float]:
        """Return percent correct of a finished run's student on each changed test."""
        if not self.tests:
            return {}
        folder = RunFolder(self.study_folder.run(cell))
        path = folder.path / CHANGED_TESTS
        # Figures of these weights, on these images, by change and strength: a name may come to stand for another.
        of = {"weights": sha256_of(folder.student / WEIGHTS), "eval_data": self.eval_data}
        known = _kept_accuracies(path, of)
        missing = [made for made in self.tests.values() if json.dumps(made) not in known]
        if missing:
            student = load_student(folder.path, trust_code=True)  # the study's own runs
            self.compute.place(student)
            for made in missing:
                if made not in self._data:
                    self._data[made] = LabelledImages(
                        self.eval_data,
                        preparation=student.preparation,
                        class_names=student.classes,
                        change=made,
                    )
                known[json.dumps(made)] = self._data[made].accuracy(student, self.compute)
            write_json(path, {**of, "accuracy": known})
        return {name: known[json.dumps(made)] for name, made in self.tests.items()}


CHANGED_TESTS = "changed_tests.json"


def _kept_accuracies(path: Path, of: Mapping[str, str]) -> dict[str, float]:
    """Return stored accuracies by change and strength; none if they are of others, or in another form."""
    kept = read_json(path) if path.is_file() else {}
    if not isinstance(kept, dict) or {name: kept.get(name) for name in of} != of:
        return {}
    return dict(kept["accuracy"])
