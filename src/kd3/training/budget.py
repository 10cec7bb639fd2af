"""Length of a run in steps or passes, the learning rate over it, and the state that lets it continue."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from kd3.config.training import DEFAULT_IMAGES, TrainSettings
from kd3.runtime.errors import KD3Error, in_words
from kd3.runtime.files import replacing
from kd3.scoring.batches import Coming


def learning_rate(step: int, total_steps: int, settings: TrainSettings, progress: float | None = None) -> float:
    """Return the learning rate of a step, 0 <= step < total_steps.

    A linear rise over `warmup_steps` (at most a fifth of the budget), then a cosine to 0, or
    division by 10 at each milestone. `progress` in [0, 1] is the used part of the budget, needed if epochs
    are passes over selected images: the steps are then fewer than `total_steps`.
    """
    warmup = min(settings.warmup_steps, total_steps // 5)
    if step < warmup:
        return settings.peak * (step + 1) / warmup
    if settings.schedule == "step":
        passed = sum(
            step >= part * total_steps if progress is None else progress >= part for part in settings.milestones
        )
        return settings.peak * 0.1**passed
    place = step if progress is None else max(warmup, progress * total_steps)
    fallen = (place - warmup) / max(1, total_steps - warmup)
    return settings.peak * 0.5 * (1 + math.cos(math.pi * fallen))


def selected_epochs(settings: TrainSettings) -> float | None:
    """Return the budget in passes over the selected images; None if it is in steps."""
    return settings.epochs if settings.epoch_of == "selected" else None


def total_steps(settings: TrainSettings, training_images: int) -> int:
    """Return the steps of a budget: images or epochs, rounded up to whole batches.

    If an epoch is a pass over the selected images, this is the maximum, reached if all are selected.
    """
    if (passes := selected_epochs(settings)) is not None:
        return max(1, math.ceil(passes * math.ceil(training_images / settings.batch)))
    if settings.epochs is not None:
        images = settings.epochs * training_images
    else:
        images = settings.images or DEFAULT_IMAGES
    return max(1, math.ceil(images / settings.batch))


VERSION = 4


@dataclass
class Progress:
    """Progress of a run. Random numbers depend on the step only, so no generator state is stored."""

    step: int = 0
    round: int = 0
    round_start: int = 0
    round_end: int = 0
    round_images: int = 0  # of all steps of the round
    epochs: float = 0.0  # passes over selected images before the round
    round_epochs: float = 0.0  # passes in it
    images: int = 0  # trained on
    selected: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    weights: Tensor | None = None  # of the selected images, if draws are not uniform
    evaluated: float = 0.0  # part of the budget used at the last evaluation
    agreement: float = -1.0  # percent of held-out images, at the last evaluation
    highest_agreement: float = -1.0  # of all evaluations so far
    best_agreement: float = -1.0  # of the kept student: see `is_as_good`
    best_step: int = 0
    seconds: float = 0.0  # of training and selection, labelled evaluation left out
    metrics_size: int = 0  # bytes
    latest: dict[str, Tensor] = field(default_factory=dict)  # `LatestPredictions.state`
    sums: dict[str, Tensor] = field(default_factory=dict)  # of the loss and its terms, since the last report
    summed: int = 0  # steps in these


def on_host(tree: Any) -> Any:
    """Return nested values with copies of their tensors on the host, with a single wait for the accelerator."""
    values, structure = tree_flatten(tree)
    coming = [
        (Coming(value) if value.device.type == "cuda" else value.clone()) if isinstance(value, Tensor) else value
        for value in values
    ]
    return tree_unflatten([value.get() if isinstance(value, Coming) else value for value in coming], structure)


def checkpoint_of(progress: Progress, *, method: dict[str, Any], learner: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's contents as copies, so training may continue. The teacher is excluded."""
    values = {"progress": vars(progress), "method": dict(method), **learner}
    return {"version": VERSION, **on_host(values)}


def write_checkpoint(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint atomically; it loads with `weights_only=True`."""
    with replacing(path) as temporary:
        torch.save(checkpoint, temporary)


def load_checkpoint(path: Path) -> tuple[Progress, dict[str, Any], dict[str, Any]]:
    """Return progress, the method's state and the learner's.

    Raises:
        KD3Error: the file is damaged or of another version.
    """
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:
        raise KD3Error(
            f"checkpoint {path} cannot be read: {type(problem).__name__}; start anew in another --out"
        ) from None
    if not isinstance(values, dict) or values.get("version") != VERSION:
        raise KD3Error(f"checkpoint {path} was not written by this version of kd3; start anew in another --out")
    try:
        learner = {"optimizer": values["optimizer"], "scale": values.get("scale", {})}
        return Progress(**values["progress"]), values["method"], learner
    except (KeyError, TypeError) as problem:
        raise KD3Error(f"checkpoint {path} is damaged: {in_words(problem)}; start anew in another --out") from None


SLACK = 1e-9  # parts of a budget are sums of floats
LEAST_OF_A_BATCH = 2  # images per process: batch norms need more than one


class Budget:
    """The budget of a run.

    Args:
        settings: images or epochs, and what an epoch is.
        training_images: of the pool, N.
        processes: that share a batch equally.
    """

    def __init__(self, settings: TrainSettings, training_images: int, processes: int = 1) -> None:
        self.settings, self.processes = settings, processes
        self.steps = total_steps(settings, training_images)  # the maximum if `epochs` sets the length
        self.epochs = selected_epochs(settings)  # passes over the selected images; None: steps decide

    @property
    def images(self) -> int:
        """Training images in all, at most."""
        return self.steps * self.settings.batch

    def progress(self, at: Progress) -> float:
        """Return the used part of the budget, in [0, 1]."""
        if self.epochs is None:
            return at.step / self.steps
        steps = at.round_end - at.round_start
        part = (at.step - at.round_start) / steps if steps else 0.0
        return (at.epochs + at.round_epochs * part) / self.epochs

    def is_used_up(self, at: Progress) -> bool:
        """Return whether the budget is used up."""
        return self.progress(at) >= 1 - SLACK

    def evaluation_is_due(self, at: Progress) -> bool:
        """Return whether an evaluation on the held-out images is due; it always is at the end."""
        since = self.progress(at) - at.evaluated
        return self.is_used_up(at) or since * self.settings.evals >= 1 - SLACK

    def open_round(self, at: Progress, kept: int, passes: float) -> None:
        """Set the length of the round that begins here: passes over the selected images, or the rest of the budget.

        At least one step. If epochs are passes, the last images form a smaller batch, of as many as the processes can
        share; otherwise incomplete batches are left out.
        """
        batch, rest = self.settings.batch, 0
        if self.epochs is None:
            steps = min(max(1, int(kept * passes) // batch), self.steps - at.step)
        else:
            at.epochs += at.round_epochs
            at.round_epochs = min(passes, self.epochs - at.epochs)
            steps, rest = divmod(round(kept * at.round_epochs), batch)
            rest -= rest % self.processes
            rest = rest if rest >= LEAST_OF_A_BATCH * self.processes else 0
            steps = max(steps, int(rest == 0))
        at.round_start, at.round_end = at.step, at.step + steps + (rest > 0)
        at.round_images = steps * batch + rest
