"""Keep the images that the networks are sure of, and never starve a class in silence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kd3.selection.class_thresholds import class_thresholds

FLOOR_SHARE = 0.01


@dataclass(frozen=True)
class Selection:
    """Which images to learn from next, and why."""

    index: Tensor  # (M,) int64, ascending: the images kept, as positions in what was scored
    thresholds: Tensor | None = None  # (K,) confidence to exceed
    predicted_per_class: Tensor | None = None  # (K,) predictions over all images
    kept_per_class: Tensor | None = None  # (K,) of these, kept
    rescued_classes: tuple[int, ...] = ()  # classes that would have kept no image
    rescued_each: int = 0  # images that each of these was given instead
    filled: int = 0  # images added because the thresholds let too few pass

    def warnings(self, class_names: Sequence[str]) -> list[str]:
        """Return what the fallback had to mend, in words; empty where it did nothing."""
        words = []
        if self.rescued_classes:
            named = [class_names[label] for label in self.rescued_classes]
            shown = ", ".join(named[:8]) + (", ..." if len(named) > 8 else "")
            words.append(
                f"{len(named)} of {len(class_names)} classes would keep no image ({shown}); each gets "
                f"the {self.rescued_each} most probable of the pool for it"
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


def select_confident(logits: Tensor, *, threshold: float = 0.95, at_least: int = 1) -> Selection:
    """Return the images whose confidence exceeds the threshold of their predicted class.

    With p = softmax(z), c_i = max_k p_ik and y_i = argmax_k p_ik, image i is kept when
    c_i > tau_{y_i} (strictly), tau_k from `class_thresholds`.

    Fallback, where the thresholds would starve the training: a class of which no image is kept
    gets the images with the highest probability for it, one in a hundred of its fair share N/K
    (at least one); and where fewer than `at_least` images are kept in all, the most confident
    ones fill the gap. `Selection.warnings` tells of both.

    Shapes: logits (N, K), the blended ones -> Selection over N. threshold in [0, 1].

    Raises:
        ValueError: no images, or logits that are not finite.

    Source: KD3 (arXiv 2307.11469), dynamic instance selection. The fallback is ours.
    """
    count, classes = logits.shape
    if count == 0:
        raise ValueError("cannot select from an empty pool")
    if not torch.isfinite(logits).all():
        raise ValueError("cannot select: the scores of some images are not finite")
    probabilities = torch.softmax(logits, dim=1)
    confidence, prediction = probabilities.max(dim=1)
    predicted = torch.bincount(prediction, minlength=classes)
    thresholds = class_thresholds(predicted, threshold=threshold)
    keep = confidence.double() > thresholds[prediction]

    kept = torch.bincount(prediction[keep], minlength=classes)
    starved = (kept == 0).nonzero().flatten().tolist()
    share = min(count, max(1, round(FLOOR_SHARE * count / classes)))
    for label in starved:
        keep[probabilities[:, label].topk(share).indices] = True
    missing = min(at_least, count) - int(keep.sum())
    if missing > 0:
        keep[confidence.masked_fill(keep, -1.0).topk(missing).indices] = True

    return Selection(
        index=keep.nonzero().flatten(),
        thresholds=thresholds,
        predicted_per_class=predicted,
        kept_per_class=torch.bincount(prediction[keep], minlength=classes),
        rescued_classes=tuple(starved),
        rescued_each=share,
        filled=max(missing, 0),
    )
