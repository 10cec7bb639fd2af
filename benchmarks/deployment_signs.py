"""Correlate label-free signs with accuracy: `python -m benchmarks.deployment_signs TEST MODEL MODEL ... [--images N]`.

MODELs are descriptions of teachers and folders of runs; TEST has class folders in the order of their logits. Its images
are taken as they are and in ten changes. For each model and sign: the rank correlation with accuracy over these sets,
and the mean and largest error, in points, of a line that was fitted to all sets but one.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from kd3.evaluation.shift_statistics import BatchNormWatch, summed_up
from kd3.models.load_teacher import load_teacher
from kd3.models.student import Student
from kd3.models.student_files import load_student
from kd3.models.teacher import Teacher
from kd3.pool.changes import change_images
from kd3.pool.decode import Decoded, DecodeSettings
from kd3.pool.decoding import read_and_decode
from kd3.sources.labels import labelled_files

SETS: list[tuple[str, float]] = [("", 0.0), ("blur", 0.02), ("blur", 0.05), ("greyscale", 1.0), ("posterise", 0.8)]
SETS += [("edges", 1.0), ("noise", 0.05), ("noise", 0.1), ("noise", 0.2), ("jpeg", 0.9), ("low-resolution", 0.6)]
BATCH = 100
SURE = 5.0  # mean cross-entropy from evenness, above which MaNo trusts softmax
POWER = 4


def mano(logits: Tensor) -> float:
    """Return MaNo's score of logits (N, K): arXiv 2405.18979 with p = 4."""
    log_softmax = logits.log_softmax(1)
    is_sure = -float(log_softmax.mean()) > SURE
    shares = log_softmax.exp() if is_sure else 1 + logits + logits.square() / 2
    shares = shares / shares.sum(1, keepdim=True)
    return float(shares.abs().pow(POWER).mean().pow(1 / POWER))


def left_out(sign: Sequence[float], accuracy: Sequence[float]) -> list[float]:
    """Return each accuracy's distance from a line through the others, in points."""
    errors = []
    for place in range(len(sign)):
        others = [number for number in range(len(sign)) if number != place]
        slope, level = np.polyfit([sign[number] for number in others], [accuracy[number] for number in others], 1)
        errors.append(abs(slope * sign[place] + level - accuracy[place]))
    return errors


def logits_of(network: Teacher | Student, images: np.ndarray) -> tuple[Tensor, float]:
    """Return a model's logits (N, K) of uint8 images (N, 3, S, S), and its mean batch-norm distance from them."""
    watch = BatchNormWatch(network)
    with watch.watching(), torch.inference_mode():
        starts = range(0, len(images), BATCH)
        parts = [network(network.normalise(torch.from_numpy(images[start : start + BATCH]))) for start in starts]
    shift = summed_up(watch.layers())
    return torch.cat(parts).float(), float("nan") if shift is None else shift.mean


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("test")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--images", type=int, default=500)
    given = parser.parse_args()
    torch.set_num_threads(1)
    models: dict[str, Teacher | Student] = {
        name: load_teacher(name) if name.endswith(".yaml") else load_student(name) for name in given.models
    }
    for model in models.values():
        model.eval()
    found = labelled_files(given.test)
    names = sorted({str(label.name) for label in found.labels})
    pairs = list(zip(found.records, found.labels, strict=True))
    random.Random(1).shuffle(pairs)
    side = next(iter(models.values())).input_size
    assert side is not None
    decoded = [
        (read_and_decode(record, DecodeSettings(side, "crop", min_side=1)), label)
        for record, label in pairs[: given.images]
    ]
    kept = [(one.pixels, names.index(str(label.name))) for one, label in decoded if isinstance(one, Decoded)]
    images, labels = np.stack([pixels for pixels, _ in kept]), torch.tensor([number for _, number in kept])
    signs: dict[tuple[str, str], list[float]] = {}
    for change, strength in SETS:
        changed = change_images(change, strength, images, np.arange(len(images))) if change else images
        said = {name: logits_of(model, changed) for name, model in models.items()}
        for name, (logits, distance) in said.items():
            values = {
                "accuracy": 100 * float((logits.argmax(1) == labels).float().mean()),
                "MaNo": mano(logits),
                "mean confidence": 100 * float(logits.softmax(1).amax(1).mean()),
                "batch norms": distance,
            }
            for other, (others, _) in said.items():
                if other != name:
                    values[f"agreement with {other}"] = 100 * float(
                        (logits.argmax(1) == others.argmax(1)).float().mean()
                    )
            for sign, value in values.items():
                signs.setdefault((name, sign), []).append(value)
    print("| model | sign | rank correlation | mean error | largest |\n|---|---|---|---|---|")
    for (name, sign), row in signs.items():
        if sign != "accuracy":
            errors = left_out(row, signs[name, "accuracy"])
            rank = float(spearmanr(row, signs[name, "accuracy"]).statistic)
            print(f"| {name} | {sign} | {rank:.2f} | {np.mean(errors):.1f} | {max(errors):.1f} |")


if __name__ == "__main__":
    main()
