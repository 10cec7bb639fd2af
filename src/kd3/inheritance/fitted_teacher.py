"""A teacher fitted to a crawl by blended batch-norm statistics, and each image's distance from the lost data.

A teacher fitted to a crawl: its batch norms use a blend of the lost data's statistics and the crawl's. The statistics
of the lost data are wrong for shifted images, and with them the features and logits for the student. Sources: AdaBN
(arXiv 1603.04779); Schneider et al. (arXiv 2006.16971), with the blend.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from kd3.models.batch_norms import LayerStatistics, blended, counted, mean_distance, remembered, remembering_norms
from kd3.models.costs import SampleSize
from kd3.models.head import evaluating, hooked, probe_images
from kd3.models.teacher import Teacher
from kd3.pool.pool_files import STATISTICS
from kd3.runtime import console
from kd3.runtime.compute import Compute
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import replacing
from kd3.scoring.batches import PoolBatches, generator_for
from kd3.scoring.scan import scored
from kd3.scoring.teacher_cache import name_for
from kd3.selection.rules import is_mixture, outlying

# Images of a pool to decide whether it is a mixture, and to choose a blend; fewer if their sides are longer, since a
# pass costs more.
ASKED = SampleSize(1000, 256)


def typicality(
    teacher: Teacher, batches: PoolBatches, positions: np.ndarray, compute: Compute, *, every_norm: bool = False
) -> Tensor:
    """Return the distance of pool images to the lost data's statistics: (N,) float32 on the CPU.

    Where the teacher's feature map is the output of a batch norm (before or after a ReLU), it is that of the pooled
    features: the mean over channels of (mu_i - m)^2 / v, with mu_i the image's mean over pixels of what enters that
    batch norm, m and v its running mean and variance. Else, or with `every_norm`, it is the mean over all batch norms
    of the mean over channels of ((mu_i - m)^2 + (s_i - sqrt(v))^2) / v, with s_i the image's deviation over pixels.

    The teacher runs once over plain views; the result takes four bytes per image.
    """
    network = Distances(teacher, every_norm=every_norm)
    parts = scored(network, batches, positions, teacher.normalise, compute, title="how typical the images are")
    return torch.cat([part[:, 0].cpu() for part in parts]) if len(positions) else torch.empty(0)


def find_outliers(teacher: Teacher, batches: PoolBatches, positions: np.ndarray, compute: Compute) -> Tensor:
    """Return which pool images are unlike anything the teacher was trained on: (N,) bool, on the CPU.

    A thousand images (256 if they are larger than 64 pixels) decide whether the pool is a mixture (see
    `kd3.selection.rules`); only then all distances are measured. Without running statistics in the teacher there are
    no outliers.
    """
    none = torch.zeros(len(positions), dtype=torch.bool)
    if len(positions) == 0 or not remembering_norms(teacher.module):
        return none
    generator = generator_for(torch.device("cpu"), 0, "outliers")
    count = ASKED.of(batches.pool.image_size)
    asked = torch.randperm(len(positions), generator=generator)[:count].sort().values.numpy()
    if not is_mixture(typicality(teacher, batches, positions[asked], compute, every_norm=True)):
        return none
    found = outlying(typicality(teacher, batches, positions, compute, every_norm=True))
    console.info(
        f"{int(found.sum()):,} of {len(found):,} images are left out: they look like nothing the teacher was trained on"
    )
    return found


class Distances(nn.Module):
    """A teacher that returns the images' distances from its training data, (B, 1), instead of logits.

    The teacher has batch norms with running statistics.
    """

    def __init__(self, teacher: Teacher, *, every_norm: bool = False) -> None:
        super().__init__()
        self.network = teacher.module
        norms = remembering_norms(teacher.module)
        last = None if every_norm else _at_the_features(teacher, norms)
        self.with_deviations = last is None
        self.norms = norms if last is None else {last: norms[last]}

    def train(self, mode: bool = True) -> Distances:
        """Stay in evaluation mode, as the teacher does."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the distances. Shapes: (B, 3, H, W), normalised -> (B, 1) float32."""
        seen: list[Tensor] = []
        with hooked(norm.register_forward_pre_hook(self._hook(seen)) for norm in self.norms.values()):
            self.network(images)
        return torch.stack(seen).mean(0)[:, None]

    def _hook(self, seen: list[Tensor]) -> Any:
        def measure(norm: Any, arguments: tuple[Tensor, ...]) -> None:
            with torch.autocast(arguments[0].device.type, enabled=False):
                values = arguments[0].float().flatten(2) if arguments[0].ndim > 2 else arguments[0].float()[:, :, None]
                mean, variance = norm.running_mean.float(), norm.running_var.float()
                means = values.mean(2)
                gap = (means - mean).square()
                if self.with_deviations and values.shape[2] > 1:
                    deviations = (values - means[:, :, None]).square().mean(2).sqrt()
                    gap = gap + (deviations - variance.sqrt()).square()
                seen.append((gap / (variance + norm.eps)).mean(1))

        return measure


def _at_the_features(teacher: Teacher, norms: dict[str, nn.Module]) -> str | None:
    """Return the batch norm whose output is the teacher's feature map, before or after a ReLU, if there is one."""
    if teacher.head is None or teacher.input_size is None:
        return None
    made: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _, __, output: made.__setitem__(name, output.clone())  # a ReLU in place may follow

    handles = (norm.register_forward_hook(keep(name)) for name, norm in norms.items())
    with hooked(handles), evaluating(teacher.module), torch.no_grad():
        features = teacher.outputs(probe_images(teacher.module, teacher.input_size, images=2, seed=0)).features
    for name, output in reversed(made.items()):
        if output.shape == features.shape and (
            torch.equal(output, features) or torch.equal(torch.relu(output), features)
        ):
            return name
    return None


VERSION = 2  # version of the outlier rule for mixed pools
COUNTED, COUNT_BATCH = SampleSize(2000, 1000), 250  # likewise
GRID = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class FittedTeacher:
    """The fitted teacher, with the details of the fit."""

    teacher: Teacher
    blend: float  # b, the crawl's share in the statistics; 0: unchanged
    reason: str  # in words
    distance: float = 0.0  # mean batch-norm distance of the crawl to the lost data's statistics
    distance_left: float = 0.0  # the same, to the blended statistics
    information: dict[float, float] = field(default_factory=dict)  # I(b) in nats, if it chose b

    def in_words(self) -> str:
        """Describe the fit in a sentence."""
        if self.blend == 0:
            return f"the teacher learns nothing from the crawl's statistics (b = 0): {self.reason}"
        return (
            f"the teacher's batch norms take {100 * self.blend:.0f}% of their statistics from the crawl: "
            f"{self.reason}; "
            f"mean batch-norm distance {self.distance:.3f} -> {self.distance_left:.3f}"
        )

    def record(self) -> dict[str, Any]:
        """Return the record for the run's summary."""
        return {
            "blend": self.blend,
            "reason": self.reason,
            "distance": round(self.distance, 4),
            "distance_left": round(self.distance_left, 4),
            "information": {f"{share:g}": round(value, 4) for share, value in self.information.items()},
        }


def fit_teacher(
    teacher: Teacher,
    batches: PoolBatches,
    positions: np.ndarray,
    compute: Compute,
    *,
    how: Literal["lost", "crawl", "blend", "auto"],
    blend: float | None = None,
    kept: Path | None = None,
) -> FittedTeacher:
    """Return the teacher fitted to the pool's training images.

    The crawl's statistics are counted once on 2,000 images spread over `positions`, without outliers
    where a pool is full of them, and stored beside the pool. `auto` takes the share b of the grid 0, 0.2, ..., 1 whose
    predictions on 1,000 of the images have the most information, I(b) = H(mean p) - mean H(p) (see `information`); the
    smallest b wins a tie within rounding. `kept` is the run's own copy of the statistics, so that a resumed run uses
    the same teacher. With several ranks the first one decides.

    Raises:
        KD3Error: a fit was requested explicitly, but the teacher has no batch norms with running statistics.
    """
    own = remembered(teacher.module)
    if how == "lost":
        return FittedTeacher(teacher, 0.0, "as it is")
    if not own and how != "auto":
        raise KD3Error(
            f"teacher {teacher.name} has no batch norms with running statistics, so it cannot be fitted to the crawl; "
            f"use --teacher-statistics lost or auto"
        )
    if not own:
        return FittedTeacher(teacher, 0.0, "it has no batch norms with running statistics, so there is nothing to fit")
    ranks = compute.ranks
    compute.place(teacher)
    statistics, by_share = _kept(kept, own) if kept is not None and kept.is_file() else ({}, {})
    if not statistics:
        with ranks.failing_together():
            if ranks.is_first:
                statistics, by_share = _made(teacher, batches, positions, compute, how)
        statistics, by_share = ranks.from_first((statistics, by_share))
        if kept is not None and ranks.is_first:
            kept.parent.mkdir(parents=True, exist_ok=True)
            _keep(kept, statistics, by_share)
    crawl = {
        name: LayerStatistics(*(value.to(old.mean.device) for value in statistics[name])) for name, old in own.items()
    }
    if how == "auto":
        share = max(by_share, key=lambda choice: (round(by_share[choice], 4), -choice))
        reason = "its answers on the pool hold the most information"
    else:
        share = 1.0 if how == "crawl" or blend is None else blend
        reason = "as asked for"
    mixed = blended(own, crawl, share)
    fitted = teacher.with_statistics(mixed) if share > 0 else teacher
    return FittedTeacher(
        fitted, share, reason, mean_distance(crawl, own), mean_distance(crawl, mixed), by_share if how == "auto" else {}
    )


def information(logits: Tensor) -> float:
    """Return the mutual information of image and prediction, H(mean p) - mean H(p), in nats. Shapes: (N, K) -> ().

    Large if predictions are confident and differ between images.
    """
    p = logits.double().softmax(1)
    return float(_entropy(p.mean(0)) - _entropy(p).mean())


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp_min(1e-30).log()).sum(-1)


def _made(
    teacher: Teacher, batches: PoolBatches, positions: np.ndarray, compute: Compute, how: str
) -> tuple[dict[str, LayerStatistics], dict[float, float]]:
    """Return the crawl's statistics, and I(b) for `auto`; from beside the pool if an earlier run stored them."""
    path = _path(teacher, batches, positions, compute)
    if path is not None and path.is_file():
        statistics, by_share = _kept(path, remembered(teacher.module))
        if statistics and (by_share or how != "auto"):
            return statistics, by_share
    alone = Compute(compute.device, compute.precision)  # the other ranks do not take part
    chosen = _drawn(positions, COUNTED.of(batches.pool.image_size))
    chosen = chosen[~find_outliers(teacher, batches, chosen, alone).numpy()]
    with console.progress("statistics of the crawl", len(chosen), "images") as bar:

        def images() -> Iterator[Tensor]:
            size = min(COUNT_BATCH, len(chosen))
            for part in batches.iterate(chosen[: len(chosen) // size * size], size):
                yield teacher.normalise(part.contiguous(memory_format=torch.channels_last))
                bar.advance(len(part))

        with compute.autocast():
            statistics = counted(teacher.module, images())
    by_share = {}
    if how == "auto":
        asked = np.sort(chosen[: ASKED.of(batches.pool.image_size)])
        own = remembered(teacher.module)
        with console.progress("answers of the fitted teacher", len(GRID) * len(asked), "images") as bar:
            for share in GRID:
                fitted = compute.place(teacher.with_statistics(blended(own, statistics, share)))
                logits = torch.cat(list(scored(fitted, batches, asked, teacher.normalise, alone)))
                by_share[share] = information(logits)
                bar.advance(len(asked))
    if path is not None:
        try:
            path.parent.mkdir(exist_ok=True)
            _keep(path, statistics, by_share)
        except OSError as problem:
            console.warn(f"the crawl's statistics could not be kept at {path}: {problem.strerror or problem}")
    return statistics, by_share


def _drawn(positions: np.ndarray, count: int) -> np.ndarray:
    """Return `count` positions in random order, the same at each call."""
    order = torch.randperm(len(positions), generator=generator_for(torch.device("cpu"), 0, "counted images"))
    chosen: np.ndarray = positions[order[:count].numpy()]
    return chosen


def _path(teacher: Teacher, batches: PoolBatches, positions: np.ndarray, compute: Compute) -> Path | None:
    pool = batches.pool
    if pool.path is None:
        return None
    which = hashlib.sha256(np.ascontiguousarray(positions, dtype=np.int64).tobytes()).hexdigest()
    return Path(pool.path) / STATISTICS / f"{name_for(VERSION, teacher, pool, compute, which)}.safetensors"


def _keep(path: Path, statistics: dict[str, LayerStatistics], by_share: dict[float, float]) -> None:
    from safetensors.torch import save_file

    tensors = {}
    for name, (mean, variance) in statistics.items():
        tensors[f"{name}.mean"], tensors[f"{name}.variance"] = mean.cpu().contiguous(), variance.cpu().contiguous()
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={repr(share): repr(value) for share, value in by_share.items()})


def _kept(path: Path, own: dict[str, LayerStatistics]) -> tuple[dict[str, LayerStatistics], dict[float, float]]:
    """Return stored statistics, for each layer of the teacher's `own`; none if the file is damaged or of another form.

    It may be somebody else's: one that is taken has finite means, variances of at least 0, and shares of the grid.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            by_share = {float(share): float(value) for share, value in (file.metadata() or {}).items()}
            found = {
                name: LayerStatistics(file.get_tensor(f"{name}.mean"), file.get_tensor(f"{name}.variance"))
                for name in own
            }
        for name, layer in found.items():
            for value, expected in zip(layer, own[name], strict=True):
                if value.shape != expected.shape or not value.is_floating_point() or not value.isfinite().all():
                    raise ValueError(f"{name} has other statistics than the teacher's layer")
            if (layer.variance < 0).any():
                raise ValueError(f"{name} has a negative variance")
        if not set(by_share) <= set(GRID) or not np.isfinite(list(by_share.values())).all():
            raise ValueError("it holds shares that are none")
    except (OSError, SafetensorError, ValueError) as problem:
        console.warn(f"{path} cannot be read ({problem}); the crawl's statistics are counted again")
        return {}, {}
    return found, by_share
