"""Distance of each pool of a study from the training data, and its correlation with the students' accuracy."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from scipy.stats import spearmanr

from kd3 import console
from kd3.compute import Compute
from kd3.domain_shift.measure import measure
from kd3.experiments.table import RunResult
from kd3.markdown import escaped, table
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool
from kd3.storage.atomic import write_json

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
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if kept.get("content_hash") != pool.content_hash:
            console.say(f"measuring the shift of pool {name}")
            said = measure(teacher, pool, None, compute, limit=len(pool), seed=0)
            if said.batch_norms is None:
                return {}
            distance = PoolDistance(
                batch_norms_last=said.batch_norms.last,
                batch_norms_mean=said.batch_norms.mean,
                confident_share=said.opinions.confident_share,
                kept_share=said.kept.share,
                effective_classes=said.opinions.effective_classes,
            )
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, {"content_hash": pool.content_hash, **asdict(distance)})
            kept = {"content_hash": pool.content_hash, **asdict(distance)}
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
