"""A teacher of the paper's tables: the user's own, or one first trained on the original data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from kd3 import console
from kd3.commands.distill import begin_or_go_on
from kd3.config.datasets import DATASETS
from kd3.config.paper import Pair, ReproduceConfig
from kd3.datasets.layouts import TEST
from kd3.datasets.prepare import POOL, Prepared
from kd3.errors import KD3Error
from kd3.models.arch import build_arch
from kd3.pool import ImagePool
from kd3.storage.atomic import replacing, write_text

CHUNK = 1000  # images
# The recipe of the paper's teachers (their authors' code); its steps are of 240 epochs.
RECIPE = {"optimizer": "sgd", "lr": 0.05, "nesterov": False, "batch_size": 64, "augmentation": "crop"}


def check_given(pairs: list[Pair], config: ReproduceConfig) -> None:
    """Check that the user's teachers exist.

    Raises:
        KD3Error: one is not.
    """
    for pair in pairs if config.teachers is not None else []:
        if not _given(pair, config).is_file():
            raise KD3Error(
                f"--teachers {config.teachers} has no {_given(pair, config).name}: the description of "
                f"kd3:{pair.teacher}, trained on {DATASETS[pair.dataset].title}"
            )


def teacher_of(pair: Pair, data: Prepared, config: ReproduceConfig) -> Path:
    """Return the description of a pair's teacher, which is trained first if there is none.

    Raises:
        KD3Error: the training failed.
        KeyboardInterrupt: interrupted, with a checkpoint; the same call resumes.
    """
    if config.teachers is not None:
        return _given(pair, config)
    folder = Path(config.out) / "teachers" / f"{pair.dataset}-{pair.teacher}"
    description = folder / "teacher.yaml"
    if description.is_file():
        return description
    console.say(f"training the teacher kd3:{pair.teacher} on {DATASETS[pair.dataset].title}")
    facts = _facts(pair, data)
    settings: dict[str, Any] = {
        "method": "labels",
        "teacher": str(_untrained(folder, facts)),
        "student": f"kd3:{pair.teacher}",
        "pool": str(data.folder.absolute() / POOL),
        "eval_data": str(data.folder.absolute() / f"{TEST}.zip"),
        "device": config.device,
        "precision": config.precision,
        # Evaluate once, at the end: this teacher provides only names and scale, so agreement means nothing.
        "train": {**RECIPE, "epochs": config.epochs_of_teachers, "looks": 1, "flip": DATASETS[pair.dataset].flip},
    }
    settings["train"]["schedule"] = "step" if config.budget == "paper" else "cosine"
    write_text(folder / "settings.yaml", yaml.safe_dump(settings, sort_keys=False))
    begin_or_go_on(str(folder / "settings.yaml"), str(folder / "run"))
    words = {"arch": f"kd3:{pair.teacher}", "weights": "run/student/model.safetensors", **facts}
    write_text(description, yaml.safe_dump(words, sort_keys=False))
    return description


def _given(pair: Pair, config: ReproduceConfig) -> Path:
    return Path(str(config.teachers)) / f"{pair.dataset}-{pair.teacher}.yaml"


def _facts(pair: Pair, data: Prepared) -> dict[str, Any]:
    """Return the data's part of a description: classes, size, and mean and std of the training set."""
    mean, std = mean_and_std(data.pool, grey=DATASETS[pair.dataset].grey)
    return {
        "num_classes": len(data.classes),
        "mean": mean,
        "std": std,
        "input_size": data.pool.image_size,
        "classes": data.classes,
    }


def mean_and_std(pool: ImagePool, *, grey: bool) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of a pool's pixels, of RGB in [0, 1]; of grey images one value each."""
    total, squares = np.zeros(3), np.zeros(3)
    for start in range(0, len(pool), CHUNK):
        images = pool.read(slice(start, start + CHUNK)).astype(np.float64) / 255
        total += images.sum(axis=(0, 2, 3))
        squares += (images**2).sum(axis=(0, 2, 3))
    count = len(pool) * pool.image_size**2
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-8))
    channels = 1 if grey else 3
    return [round(float(value), 4) for value in mean[:channels]], [round(float(value), 4) for value in std[:channels]]


def _untrained(folder: Path, facts: dict[str, Any]) -> Path:
    """Write the description of a small untrained network, from which training on labels takes only names and scale."""
    arch = "kd3:lenet5_half" if len(facts["mean"]) == 1 else "kd3:resnet8"
    path, weights = folder / "untrained.yaml", folder / "untrained.safetensors"
    if not path.is_file():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = build_arch(arch, num_classes=facts["num_classes"], channels=len(facts["mean"]))
        with replacing(weights) as temporary:
            save_file(network.state_dict(), temporary)
        write_text(path, yaml.safe_dump({"arch": arch, "weights": weights.name, **facts}, sort_keys=False))
    return path.absolute()
