"""State for the exact continuation of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from kd3.errors import KD3Error
from kd3.storage.atomic import replacing
from kd3.training.transfer import Coming

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
    learner = {"optimizer": values["optimizer"], "scale": values.get("scale", {})}
    return Progress(**values["progress"]), values["method"], learner
