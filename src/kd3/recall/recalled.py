"""Recalled images: crawl images optimised until the teacher sees the statistics of its lost data."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kd3 import console
from kd3.compute import Compute
from kd3.errors import KD3Error
from kd3.models.batch_norm_statistics import remembering_norms
from kd3.models.teacher import Teacher

STEPS = 50
RATE = 0.1  # of Adam, on normalised pixels; it falls to 0 on a cosine
BATCH_PIXELS = 128 * 32 * 32  # of one batch, which bounds the memory
SMALLEST_BATCH = 16  # images of any size: fewer have no usable statistics
VARIANCE_FLOOR = 1e-3  # of a layer's mean variance; below it a channel counts as constant


@dataclass(frozen=True)
class Recalled:
    """Images, and the distance of the teacher's statistics on them from its running ones."""

    images: Tensor  # (N, 3, S, S) float32, normalised, on the CPU
    before: float  # the objective of the crawl images, at least 0; 0: the statistics are the same
    after: float  # of the recalled ones

    @classmethod
    def of(cls, parts: Sequence[Recalled]) -> Recalled:
        """Join parts, weighted by their images."""
        images = torch.cat([part.images for part in parts])
        before, after = (
            sum(len(part.images) * value for part, value in zip(parts, values, strict=True)) / len(images)
            for values in ([part.before for part in parts], [part.after for part in parts])
        )
        return cls(images, before, after)


def recall_images(
    teacher: Teacher, images: Tensor, compute: Compute, *, steps: int = STEPS, rate: float = RATE
) -> Recalled:
    """Change crawl images until every batch norm of the teacher sees its running statistics of the lost data.

    The objective, over the batch norms l of the teacher in evaluation mode, with mean m and variance v of
    the images for each channel of what enters l and (mu, s) the running statistics of l:

        mean over l of [ mean((m - mu)^2 / s) + 1/4 mean((log v - log s)^2) ]

    Adam on normalised pixels, in float32, without any other term or randomness. Batches of bounded size are matched
    separately, so memory does not grow with the number of images.

    Args:
        teacher: the user's own, with its own statistics and its batch norms not folded.
        images: uint8 (N, 3, S, S), N >= 2.
        steps: of gradient descent, at least 1.
        rate: first learning rate.

    Raises:
        KD3Error: the teacher keeps no batch-norm statistics, its pixels have no gradient, or the objective
            is not finite.

    Source: the statistics term of DeepInversion (arXiv 1912.08795, equation 4), here from real images.
    """
    if not remembering_norms(teacher.module):
        raise KD3Error(f"teacher {teacher.name} keeps no batch-norm statistics, so it has nothing to recall from")
    # Means over positions are faster on contiguous maps than in channels_last, which the teacher may be in.
    network = copy.deepcopy(teacher.module).to(compute.device, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    parts = in_batches(images)
    moved, before, after = [], 0.0, 0.0
    with console.progress("recall", len(images) * steps, "image steps") as bar:
        for part in parts:
            normalised = teacher.normalise(part.to(teacher.normalise.scale.device))
            pixels = normalised.to(compute.device).detach().clone()
            first, last = _moved(network, pixels, steps, rate, bar, name=teacher.name)
            moved.append(pixels.detach().cpu().contiguous())
            before, after = before + first * len(part), after + last * len(part)
    return Recalled(torch.cat(moved), before / len(images), after / len(images))


def in_batches(images: Tensor) -> list[Tensor]:
    """Return images (N, 3, S, S) in nearly equal batches, whose size follows from the images' own."""
    most = max(SMALLEST_BATCH, BATCH_PIXELS // (images.shape[-1] * images.shape[-2]))
    return list(images.tensor_split(math.ceil(len(images) / most)))


def _moved(
    network: nn.Module, pixels: Tensor, steps: int, rate: float, bar: console.Progress, *, name: str
) -> tuple[float, float]:
    """Optimise one batch in place; return the objective before and after."""
    pixels.requires_grad_(True)
    optimizer = torch.optim.Adam([pixels], lr=rate)
    first = math.nan
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        value = statistics_gap(network, pixels)
        if not value.requires_grad:
            raise KD3Error(f"teacher {name} passes no gradient to its pixels, so no image can be recalled from it")
        (pixels.grad,) = torch.autograd.grad(value, [pixels])
        seen = _finite(value, name)
        first = seen if step == 0 else first
        optimizer.step()
        bar.advance(len(pixels), f"distance {seen:.3f}")
    with torch.no_grad():
        return first, _finite(statistics_gap(network, pixels), name)


def statistics_gap(network: nn.Module, images: Tensor) -> Tensor:
    """Return the objective of `recall_images` for one batch of normalised images (B, 3, H, W): a scalar, at least 0."""
    gaps: list[Tensor] = []
    with _watched(network, gaps):
        network(images)
    return torch.stack(gaps).mean()


@contextmanager
def _watched(network: nn.Module, gaps: list[Tensor]) -> Iterator[None]:
    """Collect each batch norm's part of the objective as images pass through."""

    def note(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        gaps.append(_gap(inputs[0].float(), norm.running_mean, norm.running_var, norm.eps))  # type: ignore[arg-type]

    handles = [norm.register_forward_pre_hook(note) for norm in remembering_norms(network).values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _gap(seen: Tensor, remembered_mean: Tensor, remembered_variance: Tensor, eps: float) -> Tensor:
    # Two plain means: torch.var_mean is several times slower on a CPU.
    places = seen.unsqueeze(-1).flatten(2)
    mean = places.mean(2).mean(0)
    variance = (places.square().mean(2).mean(0) - mean.square()).clamp(min=0)
    floor = eps + VARIANCE_FLOOR * remembered_variance.mean()
    expected = remembered_variance + floor
    means = ((mean - remembered_mean).square() / expected).mean()
    return means + 0.25 * ((variance + floor).log() - expected.log()).square().mean()


def _finite(value: Tensor, name: str) -> float:
    found = float(value.detach())
    if not math.isfinite(found):
        raise KD3Error(
            f"what the batch norms of teacher {name} see of these images is not finite, so no image can be recalled"
        )
    return found
