"""Distance of each image from the lost data, by the statistics in the teacher's batch norms."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kd3 import console
from kd3.compute import Compute
from kd3.models.batch_norm_statistics import remembering_norms
from kd3.models.head import evaluating, probe_images
from kd3.models.teacher import Teacher
from kd3.selection.outliers import is_mixture, outlying
from kd3.training.pool_batches import PoolBatches
from kd3.training.randomness import generator_for
from kd3.training.scan import scored

ASKED_IMAGES = 1000  # of a pool, to decide whether it is a mixture


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
    parts = scored(
        network, batches, positions, teacher.normalise, compute, title="teacher looks how typical the images are"
    )
    return torch.cat([part[:, 0].cpu() for part in parts]) if len(positions) else torch.empty(0)


def find_outliers(teacher: Teacher, batches: PoolBatches, positions: np.ndarray, compute: Compute) -> Tensor:
    """Return which pool images are unlike anything the teacher was trained on: (N,) bool, on the CPU.

    A thousand images decide whether the pool is a mixture (see `kd3.selection.outliers`); only then all distances are
    measured. Without running statistics in the teacher there are no outliers.
    """
    none = torch.zeros(len(positions), dtype=torch.bool)
    if len(positions) == 0 or not remembering_norms(teacher.module):
        return none
    generator = generator_for(torch.device("cpu"), 0, "outliers")
    asked = torch.randperm(len(positions), generator=generator)[:ASKED_IMAGES].sort().values.numpy()
    if not is_mixture(typicality(teacher, batches, positions[asked], compute, every_norm=True)):
        return none
    found = outlying(typicality(teacher, batches, positions, compute, every_norm=True))
    console.say(
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
        handles = [norm.register_forward_pre_hook(self._hook(seen)) for norm in self.norms.values()]
        try:
            self.network(images)
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack(seen).mean(0)[:, None]

    def _hook(self, seen: list[Tensor]) -> Any:
        def look(norm: Any, arguments: tuple[Tensor, ...]) -> None:
            with torch.autocast(arguments[0].device.type, enabled=False):
                values = arguments[0].float().flatten(2) if arguments[0].ndim > 2 else arguments[0].float()[:, :, None]
                mean, variance = norm.running_mean.float(), norm.running_var.float()
                means = values.mean(2)
                gap = (means - mean).square()
                if self.with_deviations and values.shape[2] > 1:
                    deviations = (values - means[:, :, None]).square().mean(2).sqrt()
                    gap = gap + (deviations - variance.sqrt()).square()
                seen.append((gap / (variance + norm.eps)).mean(1))

        return look


def _at_the_features(teacher: Teacher, norms: dict[str, nn.Module]) -> str | None:
    """Return the batch norm whose output is the teacher's feature map, before or after a ReLU, if there is one."""
    if teacher.head is None or teacher.input_size is None:
        return None
    made: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda _, __, output: made.__setitem__(name, output.clone())  # a ReLU in place may follow

    handles = [norm.register_forward_hook(keep(name)) for name, norm in norms.items()]
    try:
        with evaluating(teacher.module), torch.no_grad():
            features = teacher.outputs(probe_images(teacher.module, teacher.input_size, images=2, seed=0)).features
    finally:
        for handle in handles:
            handle.remove()
    for name, output in reversed(made.items()):
        if output.shape == features.shape and (
            torch.equal(output, features) or torch.equal(torch.relu(output), features)
        ):
            return name
    return None
