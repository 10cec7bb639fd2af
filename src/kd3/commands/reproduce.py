"""`kd3 reproduce`: a table of the paper, from data sets on disk to accuracies beside the published ones."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from kd3.commands import study
from kd3.commands.distill import begin_or_go_on
from kd3.commands.paper_plan import PaperPlan, check_disk, data_sets, plan_table, study_config
from kd3.config.published import DATASETS, TABLES, Pair, ReproduceConfig, chosen
from kd3.models.arch import build_arch
from kd3.pool import ImagePool
from kd3.runtime import console, text
from kd3.runtime.compute import resolve
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import replacing, write_json, write_text
from kd3.studies.datasets import POOL, Prepared, prepared
from kd3.studies.published_files import TEST
from kd3.studies.table import OverSeeds

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
    console.info(f"training the teacher kd3:{pair.teacher} on {DATASETS[pair.dataset].title}")
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
        "train": {**RECIPE, "epochs": config.epochs_of_teachers, "evals": 1, "flip": DATASETS[pair.dataset].flip},
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


PAGE, JSON = "table.md", "results.json"
_EXPLAINED = (
    "Accuracy in percent on the data set's test images: mean ± sample standard deviation over seeds, of the student "
    "that is kept by its agreement with the teacher; labelled images chose nothing. Published figures are of other "
    "code, teachers and crawls; docs/paper.md of kd3 has their sources."
)


@dataclass(frozen=True)
class Reproduced:
    """A table with the results so far."""

    folder: Path
    page: str
    values: dict[str, Any]  # by pair: "teacher" (its accuracy), "rows" (accuracy by row), "published"

    def to_dict(self) -> dict[str, Any]:
        """Return the accuracies."""
        return self.values

    def __str__(self) -> str:
        return f"{self.page}\nwritten to {self.folder}: {PAGE}, {JSON}; every pair's study is a folder there"


def run(config: ReproduceConfig) -> Reproduced | PaperPlan:
    """Run the command line's settings.

    Raises:
        KD3Error: data, teachers, device or disk space are missing, and nothing was begun; or runs failed.
        KeyboardInterrupt: interrupted; the same command resumes.
    """
    pairs = chosen(config.table, config.only)
    compute = resolve(config.device, config.precision)
    if config.plan:
        return plan_table(pairs, config, compute)
    check_given(pairs, config)
    data = {name: prepared(name, Path(config.data) / name) for name in data_sets(pairs, config)}
    check_disk(pairs, config)
    done: dict[str, Any] = {}
    table = Reproduced(Path(config.out), "", {})
    for number, pair in enumerate(pairs, 1):
        console.info(f"pair {number} of {len(pairs)}: {pair.name}")
        teacher = teacher_of(pair, data[pair.dataset], config)
        result = study.run(study_config(pair, config, str(teacher)))
        done[pair.name] = _figures(pair, result)
        table = _written(config, pairs, done)
    return table


def _figures(pair: Pair, result: study.Study) -> dict[str, Any]:
    rows = {line["row"]: line["measures"].get("accuracy") for line in result.to_dict()["table"]}
    summaries = sorted(result.folder.glob("runs/*/summary.json"))
    known = [json.loads(path.read_text(encoding="utf-8")).get("teacher_accuracy") for path in summaries]
    return {
        "teacher": next((value for value in known if value is not None), None),
        "rows": rows,
        "published": dict(pair.published),
    }


def _written(config: ReproduceConfig, pairs: list[Pair], done: Mapping[str, Any]) -> Reproduced:
    """Write the page and the figures of finished pairs, and return them."""
    found = [pair for pair in pairs if pair.name in done]
    names = list(dict.fromkeys(name for figures in done.values() for name in figures["rows"]))
    published = list(dict.fromkeys(name for figures in done.values() for name in figures["published"]))
    head = ["", *(f"{DATASETS[pair.dataset].title}, {pair.teacher} → {pair.student}" for pair in found)]
    teachers = [done[pair.name]["teacher"] for pair in found]
    rows = [["teacher", *("" if value is None else f"{value:.2f}" for value in teachers)]]
    rows += [[name, *(_shown(done[pair.name]["rows"].get(name)) for pair in found)] for name in names]
    rows += [
        [f"published: {name}", *(f"{done[pair.name]['published'].get(name, '')}" for pair in found)]
        for name in published
    ]
    cells = [[text.escaped(cell) for cell in row] for row in [head, *rows]]
    title = TABLES[config.table].title
    page = f"# {title}\n\nCommand: {text.code(_command(config))}.\n\n{text.table(cells)}\n\n{_EXPLAINED}\n"
    folder = Path(config.out)
    write_text(folder / PAGE, page)
    write_json(folder / JSON, dict(done))
    return Reproduced(folder, page, dict(done))


def _shown(measure: Mapping[str, Any] | None) -> str:
    return "" if measure is None else str(OverSeeds(**measure))


def _command(config: ReproduceConfig) -> str:
    words = ["kd3", "reproduce", config.table]
    for name, field in ReproduceConfig.model_fields.items():
        value = getattr(config, name)
        if name not in ("table", "plan") and value != field.default:
            between = ";" if name == "rows" else ","
            shown = between.join(map(str, value)) if isinstance(value, list) else str(value)
            words += [f"--{name.replace('_', '-')}", shown]
    return shlex.join(words)
