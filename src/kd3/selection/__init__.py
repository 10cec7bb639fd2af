"""Choice of training images in the pool: logits in, a Selection of those of which the networks are sure out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Predictions(NamedTuple):
    """Data for a selection among N images: a few bytes each, for any number of classes."""

    confidence: Tensor  # (N,) the highest probability, in [0, 1]
    label: Tensor  # (N,) int32, the class that has it
    num_classes: int

    @property
    def images(self) -> int:
        """Number of images N."""
        return len(self.label)


def predict(logits: Tensor) -> Predictions:
    """Return the most probable class of each image and its probability.

    Shapes: (N, K) -> Predictions over N.
    """
    confidence, label = torch.softmax(logits, dim=1).max(dim=1)
    return Predictions(confidence, label.to(torch.int32), logits.shape[1])


def most_probable(chunks: Iterable[Tensor], labels: Sequence[int], count: int) -> Tensor:
    """Return the images with the highest probability for each of some classes.

    `chunks` are the logits of all images in order, (n, K) at a time, so that memory does not grow
    with the pool.

    Shapes: -> (len(labels), min(count, N)), int64, positions among the images; the most probable first.
    """
    best = torch.empty(len(labels), 0)
    places = torch.empty(len(labels), 0, dtype=torch.int64)
    start = 0
    for logits in chunks:
        here = torch.softmax(logits, dim=1)[:, list(labels)].T.cpu()
        values = torch.cat([best.to(here.dtype), here], dim=1)
        at = torch.cat([places, torch.arange(start, start + here.shape[1]).expand(len(labels), -1)], dim=1)
        best, order = values.topk(min(count, values.shape[1]), dim=1)
        places = at.gather(1, order)
        start += here.shape[1]
    return places


Schedule = Literal["paper", "smooth", "constant", "teacher"]


def blend_logits(teacher_logits: Tensor, student_logits: Tensor, teacher_weight: float | Tensor) -> Tensor:
    """Return alpha * z_T + (1 - alpha) * z_S: logits are mixed, not probabilities.

    Shapes: (N, K), (N, K) -> (N, K). teacher_weight (alpha) in [0, 1], a number or ().

    Source: KD3 (arXiv 2307.11469), dynamic instance selection.
    """
    return teacher_weight * teacher_logits + (1 - teacher_weight) * student_logits


def teacher_weight(progress: float, schedule: Schedule = "smooth", *, constant: float = 0.5) -> float:
    """Return the teacher's share alpha in the blend, at a point of the training.

    With t = progress in [0, 1] and ramp(x) = 1 - exp(-5 * (x - 1)^2):

    - "paper": ramp((240 t + 2) / 160) for t < 119/240, then 0. This is the authors' code, which before epoch e of 240,
    counted from 1, takes ramp((e + 1) / 160) for e < 120: 0.99 at first, 0.27 in epoch 119, then a jump to 0.
    - "smooth": ramp(3t/2) until it reaches 0 at t = 2/3, then 0: nearly the same curve without the jump.
    - "constant": `constant` throughout; "teacher": 1 throughout (the student is never used).

    Source: KD3 (arXiv 2307.11469), dynamic instance selection, and the authors' code for the constants.

    >>> round(teacher_weight(0.0, "paper"), 2), round(teacher_weight(80 / 240, "paper"), 2)
    (0.99, 0.7)
    """
    if schedule == "constant":
        return constant
    if schedule == "teacher":
        return 1.0
    if schedule == "paper":
        place, end = 1.5 * progress + 2 / 160, 119 / 240
    else:
        place, end = 1.5 * progress, 2 / 3
    return 1 - math.exp(-5 * (place - 1) ** 2) if progress < end else 0.0


def class_thresholds(predicted_per_class: Tensor, *, threshold: float = 0.95) -> Tensor:
    """Return the confidence that an image must exceed, for each predicted class.

    With n_k predictions of class k: sigma_k = n_k / max_j n_j, tau_k = tau * sigma_k / (2 - sigma_k).
    The commonest class has tau itself, a rarely predicted one a low threshold, a class without predictions 0.

    Shapes: (K,) counts -> (K,), float64. threshold (tau) in [0, 1].

    Source: KD3 (arXiv 2307.11469), dynamic instance selection, after FlexMatch (arXiv 2110.08263), equations 8 and
    11. n_k counts all predictions, as KD3's code does; FlexMatch counts the confident ones only.

    >>> class_thresholds(torch.tensor([8, 4, 2])).tolist()
    [0.95, 0.31666666666666665, 0.1357142857142857]
    """
    share = predicted_per_class.double() / predicted_per_class.max().clamp_min(1)
    return threshold * share / (2 - share)


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
