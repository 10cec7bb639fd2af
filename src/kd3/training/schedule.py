"""The budget in steps, and how the learning rate moves over it."""

from __future__ import annotations

import math

from kd3.config.training import DEFAULT_IMAGES, TrainSettings


def learning_rate(step: int, total_steps: int, settings: TrainSettings) -> float:
    """Return the learning rate of a step, 0 <= step < total_steps.

    A linear rise over `warmup_steps` (at most a fifth of the budget), then a cosine to 0, or
    division by 10 at each milestone.
    """
    warmup = min(settings.warmup_steps, total_steps // 5)
    if step < warmup:
        return settings.peak * (step + 1) / warmup
    if settings.schedule == "step":
        passed = sum(step >= part * total_steps for part in settings.milestones)
        return settings.peak * 0.1**passed
    progress = (step - warmup) / max(1, total_steps - warmup)
    return settings.peak * 0.5 * (1 + math.cos(math.pi * progress))


def total_steps(settings: TrainSettings, training_images: int) -> int:
    """Return the steps of a budget: images or epochs, rounded up to whole batches."""
    if settings.epochs is not None:
        images = settings.epochs * training_images
    else:
        images = settings.images or DEFAULT_IMAGES
    return max(1, math.ceil(images / settings.batch_size))
