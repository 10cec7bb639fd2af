"""Run two formats of a student on the same images: their difference, and the speed of each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kd3.errors import KD3Error

TOLERANCE = 1e-4  # of the largest logit, or absolute where logits are small
SIZES = (1, 7, 64)  # of batches: detects a fixed batch size
TURNS = 7

Runner = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Parity:
    """Difference between a file's logits and the student's own."""

    images: int
    largest_difference: float
    largest_logit: float
    same_class: float  # percent

    @property
    def holds(self) -> bool:
        """Return whether both are the same function, up to rounding."""
        return self.largest_difference <= TOLERANCE * max(1.0, self.largest_logit)


def parity(expected: Tensor, run: Runner, inputs: Tensor, *, what: str) -> Parity:
    """Compare an export's logits with the student's, in batches of several sizes.

    Shapes: expected (N, K), inputs (N, 3, S, S).

    Raises:
        KD3Error: the export does not run, or has other outputs; the sentence names `what`.
    """
    try:
        found = in_batches(run, inputs)
    except Exception as problem:  # onnxruntime, TorchScript: each has its own errors
        first = str(problem).splitlines()[0] if str(problem) else ""
        raise KD3Error(f"{what} was written but does not run: {type(problem).__name__}: {first}") from problem
    if found.shape != expected.shape:
        raise KD3Error(f"{what} puts out {tuple(found.shape)} where the student gives {tuple(expected.shape)}")
    difference = (found - expected).abs().max()
    return Parity(
        images=len(expected),
        largest_difference=float(difference) if torch.isfinite(found).all() else float("inf"),
        largest_logit=float(expected.abs().max()),
        same_class=agreement(found, expected),
    )


def in_batches(run: Runner, inputs: Tensor) -> Tensor:
    """Return all logits; the first images alone and in a small batch, the others in batches of 64."""
    one, few, many = SIZES
    parts = [inputs[:one], inputs[one : one + few], *_split(inputs[one + few :], many)]
    return torch.cat([run(part) for part in parts if len(part)])


def _split(images: Tensor, size: int) -> list[Tensor]:
    return [images[start : start + size] for start in range(0, len(images), size)]


def agreement(logits: Tensor, others: Tensor) -> float:
    """Return the share of images with equal predictions, in percent."""
    return 100 * float((logits.argmax(1) == others.argmax(1)).double().mean())


def milliseconds(runners: Mapping[str, Runner], inputs: Tensor) -> dict[str, dict[int, float]]:
    """Time each for batches of 1 and 64: medians of alternating turns.

    Turns alternate, so that a slower machine slows all of them.
    """
    sizes = [size for size in (1, 64) if size <= len(inputs)]
    found: dict[str, dict[int, list[float]]] = {name: {size: [] for size in sizes} for name in runners}
    for size in sizes:
        batch = inputs[:size]
        for run in runners.values():
            run(batch)
        for _ in range(TURNS):
            for name, run in runners.items():
                repeats = max(1, 16 // size)
                start = time.perf_counter()
                for _ in range(repeats):
                    run(batch)
                found[name][size].append(1000 * (time.perf_counter() - start) / repeats)
    return {
        name: {size: round(statistics.median(times), 3) for size, times in rows.items()} for name, rows in found.items()
    }
