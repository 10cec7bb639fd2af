"""`kd3 distill --dry-run`: everything read, checked and resolved, memory estimated; nothing trained or written."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd3.commands.distill_memory import VALUE, footprint
from kd3.commands.distill_parts import Job, Live, read_job
from kd3.config.distill import DistillConfig
from kd3.config.methods import METHODS
from kd3.models.costs import parameters_of
from kd3.pool.pool_files import FEATURES
from kd3.runtime import console
from kd3.runtime.compute import Compute
from kd3.runtime.errors import KD3Error
from kd3.runtime.launch import check_launch
from kd3.runtime.run_folder import RunFolder, State
from kd3.scoring.teacher_cache import place_of
from kd3.scoring.views import bytes_of_features
from kd3.training.budget import Budget, load_checkpoint


@dataclass(frozen=True)
class Rehearsal:
    """Description of a planned run."""

    folder: Path
    values: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return it all, for JSON."""
        return self.values

    def __str__(self) -> str:
        teacher, student, pool, budget, memory = (
            self.values[name] for name in ("teacher", "student", "pool", "budget", "memory")
        )
        share = 100 * student["inherited"]
        start = f"{share:.0f}% of its first weights from the teacher" if share else "first weights at random"
        goes_on = f", {budget['steps_done']:,} of them done" if budget["steps_done"] else ""
        writes = [f"  writes       {one['path']}: about {_megabytes(one['bytes'])}" for one in self.values["writes"]]
        lines = [
            f"a dry run: everything fits; nothing was trained and nothing was written to {self.folder}",
            f"  teacher      {teacher['name']}, {_count(teacher['parameters'])}, {len(teacher['classes'])} classes",
            f"  student      {student['arch']}, {_count(student['parameters'])}; {start}",
            f"  method       {self.values['method']}; teacher's statistics: {self.values['teacher_statistics']}; "
            f"recall: {self.values['recall']}",
            f"  pool         {pool['path']}, {pool['images']:,} images of {pool['image_size']} pixels: "
            f"{pool['training']:,} to train on, {pool['held_out']:,} held out",
            f"  steps        {'at most ' * budget['at_most']}{budget['steps']:,} of {budget['batch_size']:,} images"
            f"{goes_on}, {budget['passes']:.3g} passes over the pool",
            f"  computes on  {self.values['compute']}",
            f"  memory       about {_megabytes(memory['total'])} beside PyTorch itself: weights, gradients and "
            f"momentum {_megabytes(memory['weights'])}, a step {_megabytes(memory['step'])}",
            *writes,
        ]
        return "\n".join(lines)


def rehearse(config: DistillConfig, compute: Compute, state: State, live: Live) -> Rehearsal:
    """Make all checks of a run, and describe it.

    Raises:
        KD3Error: as the run itself, before its first step.
    """
    folder = RunFolder(Path(config.out))
    check_launch(compute, devices=config.devices, nodes=config.nodes)
    _check_writable(folder.path)
    job = read_job(config, compute, state, live)
    done = 0
    if state == "interrupted":
        folder.check_origin(teacher=job.teacher.fingerprint(), pool=job.pool.content_hash)
        done = load_checkpoint(folder.last)[0].step if folder.last.is_file() else 0
    values = {
        "dry_run": True,
        "run": str(folder.path),
        "state": state,
        "method": config.method,
        **_networks(config, job),
        **_images(config, job, steps_done=done),
        "teacher_statistics": config.teacher_statistics,
        "recall": config.recall,
        "compute": str(compute),
        "processes": config.devices * config.nodes,
        "memory": _memory(config, job, compute),
        "writes": _writes(config, job, compute, folder),
        "settings": config.model_copy(update={"train": job.train}).model_dump(
            mode="json", exclude=METHODS.keys() - {config.method}
        ),
    }
    for place in values["writes"]:
        _check_space(Path(place["path"]), place["bytes"])
    return Rehearsal(folder.path, values)


def _networks(config: DistillConfig, job: Job) -> dict[str, Any]:
    return {
        "teacher": {
            "name": job.teacher.name,
            "parameters": parameters_of(job.teacher),
            "classes": job.teacher.classes,
            "input_size": job.teacher.input_size,
        },
        "student": {
            "arch": config.student,
            "parameters": parameters_of(job.method.student),
            "init": "random" if job.backbone.inheritance is None else "inherit",
            "inherited": 0.0 if job.backbone.inheritance is None else round(job.backbone.inheritance.share, 4),
        },
    }


def _images(config: DistillConfig, job: Job, *, steps_done: int) -> dict[str, Any]:
    split, train = job.split, job.train
    budget = Budget(train, len(split.train), config.devices * config.nodes)
    return {
        "pool": {
            "path": str(job.pool.path or "in memory"),
            "images": len(job.pool),
            "image_size": job.pool.image_size,
            "training": len(split.train),
            "held_out": len(split.holdout),
        },
        "labelled_images": None if job.data is None else len(job.data.records),
        "deployment_images": None if job.deployment is None else len(job.deployment.images),
        "budget": {
            "steps": budget.steps,
            "at_most": budget.epochs is not None,
            "steps_done": steps_done,
            "batch_size": train.batch,
            "passes": round(budget.images / len(split.train), 4),
        },
    }


def _memory(config: DistillConfig, job: Job, compute: Compute) -> dict[str, int]:
    found = footprint(job.method, compute, job.train.batch // (config.devices * config.nodes))
    return {"weights": found.weights, "step": found.step, "scoring": found.scoring, "total": found.total}


def _writes(config: DistillConfig, job: Job, compute: Compute, folder: RunFolder) -> list[dict[str, Any]]:
    """Return the output paths of the run, with estimated sizes in bytes."""
    method = VALUE * sum(tensor.numel() for tensor in job.method.state_dict().values())
    student = VALUE * sum(tensor.numel() for tensor in job.method.student.state_dict().values())
    # The checkpoint also has momentum; the student is stored three times: best, as trained, adapted.
    places = [{"path": str(folder.path), "bytes": 2 * method + 3 * student + 8 * len(job.pool)}]
    logits = place_of(job.teacher, job.pool, compute)
    # A teacher fitted to the crawl has other outputs than the one known here.
    is_kept = config.teacher_statistics == "lost" and logits is not None and logits.is_file()
    if logits is not None and not is_kept:
        places.append({"path": str(logits.parent), "bytes": VALUE * len(job.pool) * job.teacher.num_classes})
    if config.train.fixed_views and job.pool.path is not None:
        features = bytes_of_features(config.train, job.teacher, job.pool, compute)
        places.append({"path": str(Path(job.pool.path) / FEATURES), "bytes": features})
    return places


def _check_writable(path: Path) -> None:
    place = _existing(path)
    if not place.is_dir():
        raise KD3Error(f"--out {path} cannot be written: {place} is no folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise KD3Error(f"--out {path} cannot be written: {os.strerror(13)}")


def _check_space(path: Path, wanted: int) -> None:
    free = shutil.disk_usage(_existing(path)).free
    if free < wanted:
        console.warn(f"{path} would take about {_megabytes(wanted)}, and its disk has {_megabytes(free)} left")


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _count(parameters: int) -> str:
    return f"{parameters / 1e6:.2f} M parameters"
