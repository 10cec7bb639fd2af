"""The demo's result: the share of digits in the crawl, and a picture of lost and web images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from kd3.demo.crawl import read_truth
from kd3.demo.picture import LOST_SHOWN, WEB_SHOWN, Bar, ClassRow, draw

DIGITS = set("0123456789")


def share_of_digits(pool_folder: Path, truth_file: Path) -> float:
    """Return the percentage of the pool's images that show a digit."""
    from kd3.pool import ImagePool

    truth = read_truth(truth_file)
    shows = [truth.get(digest, "") in DIGITS for digest in ImagePool.open(pool_folder).index()["sha256"].to_pylist()]
    return 100 * float(np.mean(shows))


def draw_outcome(path: Path, *, pool_folder: Path, run: Path, lost_test: Path, accuracies: dict[str, float]) -> None:
    """Draw, for each class, lost images and the last round's web images that the student predicts as the class."""
    from kd3.compute import resolve
    from kd3.models.student_files import load_student
    from kd3.pool import ImagePool
    from kd3.runs.folder import RunFolder
    from kd3.training.pool_batches import PoolBatches
    from kd3.training.records import last_selection
    from kd3.training.scan import score

    pool = ImagePool.open(pool_folder)
    student = load_student(run)
    learned_from = last_selection(RunFolder(run))
    assert learned_from is not None
    compute = resolve("cpu", "32")
    logits = score(student, PoolBatches(pool, compute), learned_from, student.normalise, compute)
    predicted = logits.argmax(1).numpy()
    draw_from = np.random.default_rng(0)
    rows = []
    for label, name in enumerate(student.classes):
        places = learned_from[predicted == label]
        web = pool.read(draw_from.permutation(places)[:WEB_SHOWN])
        rows.append(ClassRow(name, _examples(lost_test / name), web, len(places)))
    draw(
        path,
        title="From web images to the lost task",
        subtitle="The student never saw the images on the left. It learned from those on the right.",
        rows=rows,
        bars=[Bar(name, value, emphasis="KD3" in name) for name, value in accuracies.items()],
    )


def _examples(folder: Path) -> np.ndarray:
    """Return the first lost images of a class: (n, 3, H, W) uint8."""
    files = sorted(folder.iterdir())[:LOST_SHOWN]
    return np.stack([np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1) for file in files])
