"""Selection of confidently predicted images, with reports of starved classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kd3.selection.class_thresholds import class_thresholds
from kd3.selection.predictions import Predictions, most_probable

FLOOR_SHARE = 0.01
CHUNK = 1 << 16  # images compared at once: temporary memory does not grow with the pool


@dataclass(frozen=True)
class Selection:
    """Next training images, and the reasons."""

    index: Tensor  # (M,) int64, ascending: the images kept, as positions among the scored images
    thresholds: Tensor | None = None  # (K,) confidence to exceed
    predicted_per_class: Tensor | None = None  # (K,) predictions over all images
    kept_per_class: Tensor | None = None  # (K,) of these, kept
    rescued_classes: tuple[int, ...] = ()  # classes that would have no image
    rescued_each: int = 0  # images added for each of these
    rescued: Tensor | None = None  # (len(rescued_classes), rescued_each) added images, likeliest first
    filled: int = 0  # images added because the thresholds let too few pass
    weights: Tensor | None = None  # (M,) relative frequency of draws; None: equal

    def warnings(self, class_names: Sequence[str]) -> list[str]:
        """Return the actions of the fallback in words; empty if there were none."""
        words = []
        if self.rescued_classes:
            named = [class_names[label] for label in self.rescued_classes]
            shown = ", ".join(named[:8]) + (", ..." if len(named) > 8 else "")
            words.append(
                f"{len(named)} of {len(class_names)} classes would keep no image ({shown}); each gets "
                f"the {self.rescued_each} most probable of the pool for it, as the teacher sees them"
            )
        if self.filled:
            words.append(
                f"too few images passed the thresholds to fill a batch; the {self.filled} most "
                f"confident others were added"
            )
        return words


def select_everything(count: int) -> Selection:
    """Return the selection that keeps all `count` images."""
    return Selection(index=torch.arange(count))


def select_random(count: int, wanted: int, *, seed: int) -> Selection:
    """Return `wanted` of `count` images, drawn by `seed`; all if there are fewer."""
    generator = torch.Generator().manual_seed(seed)
    return Selection(index=torch.randperm(count, generator=generator)[:wanted].sort().values)


def select_confident(
    predictions: Predictions,
    *,
    threshold: float = 0.95,
    at_least: int = 1,
    teacher_logits: Callable[[], Iterable[Tensor]],
) -> Selection:
    """Return the images whose confidence exceeds the threshold of their predicted class.

    With p = softmax(z) of the blended logits, c_i = max_k p_ik and y_i = argmax_k p_ik, image i is
    kept when c_i > tau_{y_i} (strictly), tau_k from `class_thresholds`.

    Fallback, if the thresholds would starve the training: a class without a kept image gets the images with the
    teacher's highest probability for it (a student that has lost a class cannot recover it), 1% of its fair share N/K,
    at least one. If fewer than `at_least` images are kept in all, the most confident ones fill the gap.
    `Selection.warnings` reports both.

    Args:
        predictions: of N images, from the blended logits.
        threshold: tau, in [0, 1].
        at_least: images to keep, if there are as many.
        teacher_logits: returns the teacher's logits of the same images in chunks (n, K); called only if a class
            starves.

    Raises:
        ValueError: no images, or confidences that are not finite.

    Source: KD3 (arXiv 2307.11469), dynamic instance selection. The fallback is ours.
    """
    count, classes = predictions.images, predictions.num_classes
    if count == 0:
        raise ValueError("cannot select from an empty pool")
    if not torch.isfinite(predictions.confidence.sum(dtype=torch.float64)):
        raise ValueError("cannot select: the scores of some images are not finite")
    predicted = _count(predictions.label, classes)
    thresholds = class_thresholds(predicted, threshold=threshold)
    keep = torch.empty(count, dtype=torch.bool)
    for part in _parts(count):
        keep[part] = predictions.confidence[part].double() > thresholds[predictions.label[part].long()]

    kept = _count(predictions.label, classes, of=keep)
    starved = (kept == 0).nonzero().flatten().tolist()
    share = min(count, max(1, round(FLOOR_SHARE * count / classes)))
    rescued = most_probable(teacher_logits(), starved, share) if starved else None
    if rescued is not None:
        keep[rescued.flatten()] = True
    missing = min(at_least, count) - int(keep.sum())
    if missing > 0:
        keep[predictions.confidence.masked_fill(keep, -1.0).topk(missing).indices] = True

    return Selection(
        index=keep.nonzero().flatten(),
        thresholds=thresholds,
        predicted_per_class=predicted,
        kept_per_class=_count(predictions.label, classes, of=keep),
        rescued_classes=tuple(starved),
        rescued_each=share,
        rescued=rescued,
        filled=max(missing, 0),
    )


def _parts(count: int) -> list[slice]:
    return [slice(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]


def _count(labels: Tensor, classes: int, *, of: Tensor | None = None) -> Tensor:
    """Count each class among the labels, or among the masked ones: (K,)."""
    counts = torch.zeros(classes, dtype=torch.int64)
    for part in _parts(len(labels)):
        chosen = labels[part] if of is None else labels[part][of[part]]
        counts += torch.bincount(chosen, minlength=classes)
    return counts
