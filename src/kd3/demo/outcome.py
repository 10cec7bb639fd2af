"""The final selection of the demo's KD3 run, in figures and in a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kd3.demo.crawl import read_truth
from kd3.demo.picture import IMAGES_SHOWN, Bar, ClassRow, draw

DIGITS = set("0123456789")


def truth_of_selection(pool_folder: Path, run: Path, truth_file: Path) -> tuple[float, float]:
    """Return the percentage of real digits in the pool, and in the last selection."""
    from kd3.pool import ImagePool

    truth = read_truth(truth_file)
    shows = [truth.get(digest, "") in DIGITS for digest in ImagePool.open(pool_folder).index()["sha256"].to_pylist()]
    is_digit = np.array(shows)
    return 100 * float(is_digit.mean()), 100 * float(is_digit[_last_selection(run)].mean())


def draw_selection(path: Path, pool_folder: Path, run: Path, *, accuracies: dict[str, float]) -> None:
    """Draw, for each class that the student sees in the pool, images that were kept and refused."""
    from kd3.compute import resolve
    from kd3.models.student_files import load_student
    from kd3.pool import ImagePool
    from kd3.training.pool_batches import PoolBatches
    from kd3.training.pool_split import split_pool
    from kd3.training.scan import score

    pool = ImagePool.open(pool_folder)
    student = load_student(run)
    train = split_pool(pool, 1000).train
    compute = resolve("cpu", "32")
    logits = score(student, PoolBatches(pool, compute), train, student.normalise, compute)
    predicted = logits.argmax(1).numpy()
    kept = np.isin(train, _last_selection(run))
    draw_from = np.random.default_rng(0)
    rows = []
    for label, name in enumerate(student.classes):
        places = {state: train[(predicted == label) & (kept == state)] for state in (True, False)}
        shown = {s: pool.read(draw_from.permutation(p)[:IMAGES_SHOWN]) for s, p in places.items()}
        rows.append(ClassRow(name, shown[True], len(places[True]), shown[False], len(places[False])))
    draw(
        path,
        title="What KD3 learns from, and what it leaves aside",
        subtitle="The last selection from the crawl, by the class that the student sees in an image",
        rows=rows,
        bars=[Bar(name, value, emphasis="KD3" in name) for name, value in accuracies.items()],
    )


def _last_selection(run: Path) -> np.ndarray:
    """Return the pool positions that the last round kept."""
    kept: np.ndarray = np.load(sorted((run / "selections").glob("*.npy"))[-1])
    return kept
