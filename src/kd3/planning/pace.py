"""Speed of a run on this machine: a few of its steps, measured."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import numpy as np
import torch

from kd3.compute import Compute
from kd3.config.training import TrainSettings
from kd3.methods.base import Method
from kd3.planning.idle_clock import idle_seconds
from kd3.pool import ImagePool
from kd3.training.learner import Learner
from kd3.training.pool_batches import PoolBatches

STEPS = 20
SECONDS = 20.0  # no step begins after these
WARM_UP = 2  # uncounted steps


@dataclass(frozen=True)
class Pace:
    """Measurements of the steps."""

    steps: int
    batch: int  # images
    seconds: float  # a step, on an otherwise idle machine: the median

    @property
    def images_per_second(self) -> float:
        """Training images a second, without scoring the pool."""
        return self.batch / self.seconds


def pace_of(
    method: Method,
    pool: ImagePool,
    places: np.ndarray,
    settings: TrainSettings,
    compute: Compute,
    *,
    steps: int = STEPS,
    seconds: float = SECONDS,
) -> Pace:
    """Measure the time of a method's step; this changes its student.

    `places` are the positions in the pool of the images to train on. A slow network takes fewer than `steps`: none
    begins after `seconds`. A method that needs labels gets artificial ones.
    """
    batch = min(settings.batch, len(places))
    labels = torch.zeros(len(pool), dtype=torch.int64) if method.needs_labels else None
    learner = Learner(method, settings, seed=0, total_steps=steps + WARM_UP, compute=compute, labels=labels)
    batches = PoolBatches(pool, compute)
    order = np.resize(places, batch * (steps + WARM_UP))
    method.train()
    times: list[float] = []
    began = idle_seconds(compute.device)
    with torch.random.fork_rng(devices=[compute.device] if compute.device.type == "cuda" else []):
        for number, images in enumerate(batches.iterate(order, batch)):
            start = idle_seconds(compute.device)
            learner.step(number, images, torch.from_numpy(order[number * batch : (number + 1) * batch]))
            times.append(idle_seconds(compute.device) - start)
            if len(times) > WARM_UP and idle_seconds(compute.device) - began > seconds:
                break
    counted = times[WARM_UP:]
    return Pace(len(counted), batch, statistics.median(counted))
