"""Files that a training writes into its run folder. Of several ranks only the first writes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd3.config.run_records import read_settings
from kd3.methods import Method
from kd3.pool import ImagePool
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import replacing, write_json
from kd3.runtime.ranks import Ranks
from kd3.runtime.run_folder import Listener, RunFolder
from kd3.scoring.batches import PoolSplit, split_pool
from kd3.selection import Selection
from kd3.training.budget import Progress, checkpoint_of, on_host, write_checkpoint
from kd3.training.history import Health, History

NAME = "not-finite.json"


def not_finite(
    folder: RunFolder,
    *,
    seed: int,
    lr: float,
    first_step: int,
    means: Mapping[str, float],
    batches: Sequence[np.ndarray],
    write: bool = True,
) -> KD3Error:
    """Record the images of the last steps, and return the error that ends the run.

    Args:
        first_step: number of the first of these steps.
        means: the loss and its terms, means over these steps.
        batches: positions in the pool, of each step (B,).
        write: whether this process writes.
    """
    place = folder.path / NAME
    last = first_step + len(batches) - 1
    if write:
        with suppress(OSError):  # the error itself matters more
            write_json(
                place,
                {
                    "seed": seed,
                    "steps": [first_step, last],
                    "terms": {name: repr(float(value)) for name, value in means.items()},  # JSON has no NaN
                    "positions": {str(first_step + number): batch.tolist() for number, batch in enumerate(batches)},
                },
            )
    wrong = [name.replace("_", " ") for name, value in means.items() if not np.isfinite(value) and name != "loss"]
    again = "the same run repeats them"
    if folder.last.is_file():
        again = f"{folder.resume_command} repeats them"
    return KD3Error(
        f"the loss is not finite at one of the steps {first_step} to {last}"
        + (f" (of its terms: {', '.join(wrong)})" if wrong else "")
        + f"; start in another --out with a lower --lr (now {lr}) or --precision 32. {place} holds the images of these "
        f"steps, and {again}"
    )


class RunLogger:
    """Selections, history, the best student and checkpoints of one run.

    Args:
        at: progress of the run; events carry it.
        budget: images in all, at most.
        listeners: receivers of events, created if this rank writes.
    """

    def __init__(
        self,
        folder: RunFolder,
        ranks: Ranks,
        at: Progress,
        *,
        budget: int,
        classes: Sequence[str],
        listeners: Callable[[], Sequence[Listener]],
    ) -> None:
        self.folder, self.at, self.classes = folder, at, classes
        self.saved_at = time.monotonic()
        self.saved_step = at.step
        self._best: dict[str, Tensor] | None = None  # not on disk yet
        self._writer = ThreadPoolExecutor(1, "kd3-checkpoint")
        self._writing: Future[None] | None = None
        self._history: History | None = None
        if ranks.is_first:
            health = Health(classes, budget)
            self._history = History(folder.metrics, health, size=at.metrics_size, listeners=listeners())

    @property
    def writes(self) -> bool:
        """Whether this rank writes."""
        return self._history is not None

    def train(self, means: Mapping[str, float], *, lr: float, rate: float) -> None:
        """Report the mean losses of the last steps."""
        self._log("train", **means, lr=lr, images_per_second=round(rate, 1))

    def evaluation(self, **values: float) -> None:
        """Record the results on held-out images."""
        self._log("evaluation", agreement=self.at.agreement, **values)

    def selection(self, selection: Selection, positions: np.ndarray, *, of: int) -> None:
        """Store the selected images' positions in the pool, and report the selection."""
        if self._history is None:
            return
        self.folder.selections.mkdir(exist_ok=True)
        with (
            replacing(self.folder.selections / f"{self.at.round:05d}.npy") as path,
            path.open("wb") as handle,
        ):
            np.save(handle, positions)
        counts = {
            name: None if values is None else values.tolist()
            for name, values in (
                ("thresholds", selection.thresholds),
                ("predicted_per_class", selection.predicted_per_class),
                ("kept_per_class", selection.kept_per_class),
            )
        }
        self._history.add(
            "selection",
            round=self.at.round,
            **self._place(),
            of=of,
            kept=len(positions),
            rescued_classes=list(selection.rescued_classes),
            filled=selection.filled,
            **counts,
        )
        for words in selection.warnings(self.classes):
            self._history.warn(words, before=f"selection of round {self.at.round}: ", **self._place())

    def best(self, student: torch.nn.Module) -> None:
        """Keep this student as the run's result so far; the next checkpoint writes it to disk."""
        if self.writes:
            self._best = on_host(dict(student.state_dict()))

    def checkpoint(self, method: Method, learner: dict[str, Any], latest: dict[str, Tensor]) -> None:
        """Write a checkpoint in a thread, after any previous one is complete.

        Raises:
            OSError, RuntimeError: the previous one could not be written.
        """
        self.saved_at, self.saved_step = time.monotonic(), self.at.step
        if self._history is None:
            return
        self.at.metrics_size, self.at.latest = self._history.size, latest
        checkpoint, best = checkpoint_of(self.at, method=method.state_dict(), learner=learner), self._best
        self._best = None
        self.written()
        self._writing = self._writer.submit(self._write, checkpoint, best)

    def written(self) -> None:
        """Wait until the checkpoint is on disk.

        Raises:
            OSError, RuntimeError: it could not be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """End the writing thread; raises as `written`."""
        try:
            self.written()
        finally:
            self._writer.shutdown()

    def _write(self, checkpoint: dict[str, Any], best: dict[str, Tensor] | None) -> None:
        from safetensors.torch import save_file

        if best is not None:  # first: a checkpoint must not refer to a missing student
            with replacing(self.folder.best) as path:
                save_file({name: value.contiguous() for name, value in best.items()}, path)
        write_checkpoint(self.folder.last, checkpoint)

    def not_finite(
        self, *, seed: int, lr: float, means: Mapping[str, float], batches: Sequence[np.ndarray]
    ) -> KD3Error:
        """Record the positions of the last steps' images, and return the error that ends the run."""
        first_step = self.at.step - len(batches) + 1
        return not_finite(
            self.folder, seed=seed, lr=lr, first_step=first_step, means=means, batches=batches, write=self.writes
        )

    def _log(self, event: str, **values: Any) -> None:
        if self._history is not None:
            self._history.add(event, **self._place(), **values)

    def _place(self) -> dict[str, float]:
        return {"step": self.at.step, "images": self.at.images, "seconds": round(self.at.seconds, 2)}


def last_selection(folder: RunFolder, *, images: int) -> np.ndarray | None:
    """Return the pool positions of a run's last round, (M,) ascending; None before the first round.

    Args:
        images: number of images in the pool.

    Raises:
        KD3Error: the file is damaged or of another pool.
    """
    files = selection_files(folder)
    return read_selection(files[-1], images=images) if files else None


def split_of(folder: RunFolder, pool: ImagePool) -> PoolSplit:
    """Return the split of a run's pool into training and held-out images.

    Raises:
        KD3Error: the run's settings are damaged, or the pool is too small for them.
    """
    train = read_settings(folder)[0].train
    return split_pool(pool, train.holdout, share=train.share)


def trained_on(folder: RunFolder, pool: ImagePool) -> np.ndarray:
    """Return the pool positions of a run's last selection, of a run without selections all its training images.

    Shapes: -> (M,) ascending. Errors are those of `last_selection` and `split_of`.
    """
    last = last_selection(folder, images=len(pool))
    return split_of(folder, pool).train if last is None else last


def selection_files(folder: RunFolder) -> list[Path]:
    """Return the files of a run's selections, in the order of the rounds."""
    return sorted(folder.selections.glob("*.npy"))


def read_selection(path: Path, *, images: int) -> np.ndarray:
    """Return the pool positions of one round; arguments and errors are those of `last_selection`."""
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        # Mapped: a header may claim more than the file, or memory, holds.
        positions = np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError) as problem:
        raise KD3Error(f"{path} cannot be read: {problem}") from None
    if positions.ndim != 1 or positions.dtype.kind not in "iu":
        raise KD3Error(f"{path} is damaged: it must hold positions, and holds {positions.dtype} {positions.shape}")
    if len(positions) and (positions.min() < 0 or positions.max() >= images):
        raise KD3Error(f"{path} is damaged: it names images that are not among the {images:,} of the pool")
    return positions
