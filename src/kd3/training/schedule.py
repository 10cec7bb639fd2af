"""Budget in steps, and learning rate schedule."""

from __future__ import annotations

import math

from kd3.config.training import DEFAULT_IMAGES, TrainSettings


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
