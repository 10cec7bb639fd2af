"""Record of a run whose loss was not finite: the images, and the state to reproduce the failure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np

from kd3.errors import KD3Error
from kd3.runs.folder import RunFolder
from kd3.storage.atomic import write_json

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
