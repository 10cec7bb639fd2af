"""Trackers of a run: TensorBoard, W&B and MLflow receive its events as numbers; a failing one is dropped."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from kd3.runtime import console
from kd3.runtime.errors import KD3Error, in_brief
from kd3.runtime.files import write_text

MOST_CLASSES = 100  # with their own curves
PLACE = ("event", "step", "images", "seconds")


def scalars(event: str, values: Mapping[str, Any], classes: Sequence[str]) -> dict[str, float]:
    """Return the numbers of an event by the names of their curves; per class if there are few.

    >>> scalars("evaluation", {"step": 10, "images": 640, "seconds": 1.0, "agreement": 50.0}, [])
    {'agreement/held_out_web_images': 50.0}
    """
    if event == "train":
        return {_name(name): float(value) for name, value in values.items() if name not in PLACE}
    if event == "evaluation":
        named = {
            "agreement": "agreement/held_out_web_images",
            "divergence": "divergence/held_out_web_images",
            "accuracy": "accuracy/labelled_images",
        }
        return {label: float(values[name]) for name, label in named.items() if name in values}
    if event != "selection":
        return {}
    found = {"selection/kept_percent": 100 * values["kept"] / values["of"]}
    if len(classes) <= MOST_CLASSES:
        for group, name in (("kept", "kept_per_class"), ("threshold", "thresholds")):
            if values.get(name):
                pairs = zip(classes, values[name], strict=True)
                found |= {f"{group}/{_plain(label)}": float(value) for label, value in pairs}
    return found


def _name(name: str) -> str:
    return {"lr": "training/learning_rate", "images_per_second": "training/images_per_second"}.get(name, f"loss/{name}")


def _plain(label: str) -> str:
    """Convert a class name to characters that all trackers accept: letters, digits and a few signs."""
    return "".join(sign if sign.isalnum() or sign in "-_. " else "_" for sign in label)


class Tracker(Protocol):
    """Interface of a tracker."""

    def log(self, numbers: Mapping[str, float], images: int) -> None:
        """Log numbers at a number of training images."""

    def close(self) -> None:
        """Write pending numbers."""


class TensorBoard:
    """Event files in `RUN/tensorboard`: `tensorboard --logdir RUNS` shows all runs below a folder."""

    def __init__(self, folder: Path, config: Mapping[str, Any], images: int) -> None:
        from tensorboardX import SummaryWriter

        # Hides the events of a killed run after its last checkpoint.
        purge = images + 1 if images else None
        # Files are named by the second; the suffix keeps a quick resume from overwriting one.
        place = str(folder / "tensorboard")
        self._writer = SummaryWriter(place, purge_step=purge, filename_suffix=f".{images}.{os.getpid()}")
        if not images:
            text = "\n".join(f"    {name}: {value}" for name, value in flat(config).items())
            self._writer.add_text("settings", text, 0)

    def log(self, numbers: Mapping[str, float], images: int) -> None:
        """Log numbers at a number of training images."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, images)

    def close(self) -> None:
        """Write pending numbers."""
        self._writer.close()


class WandB:
    """A run of Weights & Biases, project `kd3` unless WANDB_PROJECT is set; resumed under the same id."""

    def __init__(self, folder: Path, config: Mapping[str, Any], images: int) -> None:
        import wandb

        place = folder / "wandb-id.txt"
        known = place.read_text(encoding="utf-8").strip() if images and place.is_file() else None
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "kd3"),
            name=folder.resolve().name,
            dir=str(folder),
            config=dict(config),
            id=known,
            resume="allow" if known else None,
        )
        write_text(place, f"{self._run.id}\n")
        self._run.define_metric("images")
        self._run.define_metric("*", step_metric="images")

    def log(self, numbers: Mapping[str, float], images: int) -> None:
        """Log numbers at a number of training images."""
        self._run.log({**numbers, "images": images})

    def close(self) -> None:
        """Write pending numbers."""
        self._run.finish()


class MLflow:
    """A run of MLflow, experiment `kd3` unless MLFLOW_EXPERIMENT_NAME is set; resumed under the same id."""

    def __init__(self, folder: Path, config: Mapping[str, Any], images: int) -> None:
        import mlflow

        self._mlflow = mlflow
        place = folder / "mlflow-id.txt"
        known = place.read_text(encoding="utf-8").strip() if images and place.is_file() else None
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", "kd3"))
        run = mlflow.start_run(run_id=known) if known else mlflow.start_run(run_name=folder.resolve().name)
        write_text(place, f"{run.info.run_id}\n")
        if not known:
            mlflow.log_params({name: str(value)[:500] for name, value in flat(config).items()})

    def log(self, numbers: Mapping[str, float], images: int) -> None:
        """Log numbers at a number of training images."""
        self._mlflow.log_metrics({name.replace("%", ""): value for name, value in numbers.items()}, step=images)

    def close(self) -> None:
        """Write pending numbers."""
        self._mlflow.end_run()


KINDS: dict[str, tuple[Callable[[Path, Mapping[str, Any], int], Tracker], str, str]] = {
    "tensorboard": (TensorBoard, "tensorboardX", "pip install tensorboardX"),
    "wandb": (WandB, "wandb", "pip install 'kd3[wandb]'"),
    "mlflow": (MLflow, "mlflow", "pip install 'kd3[mlflow]'"),
}


class Trackers:
    """Listener of a run's metrics that passes events to its trackers.

    Args:
        names: of `KINDS`.
        folder: the run's.
        config: the run's settings.
        classes: their names.
        images: progress of a resumed run; 0 for a new one.
    """

    def __init__(
        self, names: Sequence[str], folder: Path, config: Mapping[str, Any], classes: Sequence[str], *, images: int = 0
    ) -> None:
        self._classes = classes
        self._trackers: dict[str, Tracker] = {}
        for name in names:
            try:
                self._trackers[name] = KINDS[name][0](folder, config, images)
            except Exception as problem:  # each library has its own errors, and none may end a run
                self._give_up(name, problem)

    def __call__(self, event: str, values: Mapping[str, Any]) -> None:
        """Pass on an event."""
        numbers = scalars(event, values, self._classes)
        if not numbers:
            return
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.log(numbers, int(values["images"]))
            except Exception as problem:
                self._give_up(name, problem)

    def close(self) -> None:
        """Let all trackers write pending numbers."""
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.close()
            except Exception as problem:
                self._give_up(name, problem)

    def _give_up(self, name: str, problem: Exception) -> None:
        tracker = self._trackers.pop(name, None)
        if tracker is not None:
            with suppress(Exception):
                tracker.close()
        console.warn(f"{name} is no longer told of this run, which continues: {in_brief(problem)}")


def check_installed(names: Sequence[str]) -> None:
    """Check before a run that its trackers are installed.

    Raises:
        KD3Error: one is missing; with installation advice.
    """
    for name in names:
        _, module, command = KINDS[name]
        if find_spec(module) is None:
            raise KD3Error(f"--track {name} needs {module}, which is not installed: {command}")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted names.

    >>> flat({"train": {"lr": 0.1}, "seed": 0})
    {'train.lr': 0.1, 'seed': 0}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found
