"""Further rules of selection: outliers left out, the surest or most typical images kept, rare classes drawn more often.

Exclusion of images unlike anything the teacher was trained on, from pools with many of them. Images are judged by
their distance to the lost data's statistics in the teacher's batch norms. A shift moves the distances of all images
alike; irrelevant images spread them. Share of images farther than 2.5 times the 5th percentile: at most 10% for a
ResNet-56 on the lost data itself, on a clean crawl, and on this crawl blurred, noisy, grey, in low resolution, or
drawn as edges; 28% for a WRN-16-2 at 64 pixels on its lost data and on the crawl; 78% where nine of ten images show
text, flat colours, noise, or shapes. Ours; see docs/results/inherit-fit-recall.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from kd3.selection import Predictions, Selection, select_everything


def class_balance(labels: Tensor, *, strength: float) -> Tensor:
    """Return each image's relative frequency of draws: n_y^-strength for an image of class y.

    With n_k images of class k among them, a class gets a share of the draws proportional to n_k^(1 - strength): 0 keeps
    the natural frequencies, 1 makes all non-empty classes equally frequent.

    Shapes: (M,) int -> (M,) float32, positive. strength in [0, 1].
    """
    counts = torch.bincount(labels.long())
    return counts.clamp_min(1).double().pow(-strength)[labels.long()].float()


def weighted_order(weights: Tensor, need: int, *, generator: torch.Generator) -> Tensor:
    """Return `need` draws among M images in random order; an image's count follows its weight, within one.

    Systematic sampling: an image whose share of the draws is r is drawn floor(r) or ceil(r) times, r on average.

    Shapes: (M,) positive -> (need,) int64.
    """
    shuffled = torch.randperm(len(weights), generator=generator)
    ends = weights[shuffled].double().cumsum(0)
    ends = ends * (need / ends[-1])
    offset = torch.rand((), generator=generator, dtype=torch.float64)
    upto = torch.floor(ends + offset).long()
    upto[-1] = need  # despite rounding
    counts = torch.diff(upto.clamp_max(need), prepend=torch.zeros(1, dtype=torch.int64))
    drawn = shuffled.repeat_interleave(counts)
    return drawn[torch.randperm(need, generator=generator)]


NEAREST = 0.05  # quantile that represents images like the lost ones
FARTHEST = 2.5  # times that distance: farther images are outliers
MIXED = 0.5  # share of outliers above which a pool counts as a mixture


def outlying(distances: Tensor) -> Tensor:
    """Return which images are farther than 2.5 times the nearest twentieth: (N,) -> (N,) bool.

    Raises:
        ValueError: no images, or distances that are not finite.
    """
    if len(distances) == 0:
        raise ValueError("an empty pool has no outliers")
    if not torch.isfinite(distances).all():
        raise ValueError("the distances of some images are not finite")
    place = int(NEAREST * (len(distances) - 1))
    return distances > FARTHEST * distances.sort().values[place]


def is_mixture(distances: Tensor) -> bool:
    """Return whether more than half of the images are outliers."""
    return float(outlying(distances).double().mean()) > MIXED


def select_inliers(outliers: Tensor, *, at_least: int = 1) -> Selection:
    """Return the images that are not outliers, or all if these are too few. Shapes: (N,) bool."""
    index = (~outliers).nonzero().flatten()
    return Selection(index=index) if len(index) >= at_least else select_everything(len(outliers))


def self_cross_entropy(logits: Tensor) -> Tensor:
    """Return the cross-entropy of each image's logits to their own argmax, -log max_k p_k.

    Exact where the probability rounds to 1: log(1 + the other classes' terms).

    Shapes: (N, K) -> (N,), float64, at least 0.
    """
    highest, label = logits.double().max(dim=1, keepdim=True)
    rest = (logits.double() - highest).scatter(1, label, float("-inf")).exp().sum(dim=1)
    return torch.log1p(rest)


def select_surest(teacher_logits: Iterable[Tensor], wanted: int) -> tuple[Selection, float]:
    """Return the `wanted` images with the smallest cross-entropy, and the mean confidence over them.

    Ties go to the earlier image. `teacher_logits` come in chunks (n, K), in order. The confidence is max_k p_k, in
    [1/K, 1].

    Source: Chen et al., Learning Student Networks in the Wild (DFND, CVPR 2021), data collection.

    Raises:
        ValueError: no images, or logits that are not finite.
    """
    entropies, labels, classes = [], [], 0
    for logits in teacher_logits:
        classes = logits.shape[1]
        entropies.append(self_cross_entropy(logits).cpu())
        labels.append(logits.argmax(dim=1).to(torch.int32).cpu())
    if not entropies:
        raise ValueError("cannot select from an empty pool")
    entropy, label = torch.cat(entropies), torch.cat(labels)
    if not torch.isfinite(entropy).all():
        raise ValueError("cannot select: the teacher's logits of some images are not finite")
    index = torch.sort(entropy, stable=True).indices[:wanted].sort().values
    selection = Selection(
        index=index,
        predicted_per_class=torch.bincount(label, minlength=classes),
        kept_per_class=torch.bincount(label[index], minlength=classes),
    )
    return selection, float((-entropy[index]).exp().mean())


def select_typical(distances: Tensor, predictions: Predictions, *, share: float, at_least: int = 1) -> Selection:
    """Return, of each predicted class, the given share of images nearest to the lost data.

    Selecting per class keeps the teacher's class frequencies and starves no class: of n_k images ceil(share n_k) are
    kept. If that is fewer than `at_least`, the nearest of the others fill the gap. Ties go to
    the earlier image.

    Shapes: distances (N,), at least 0; share in (0, 1].

    Raises:
        ValueError: no images, or distances that are not finite.
    """
    if len(distances) == 0:
        raise ValueError("cannot select from an empty pool")
    if not torch.isfinite(distances).all():
        raise ValueError("cannot select: the distances of some images are not finite")
    classes, labels = predictions.num_classes, predictions.label.long()
    nearest = torch.sort(distances, stable=True).indices
    by_class = nearest[torch.sort(labels[nearest], stable=True).indices]
    predicted = torch.bincount(labels, minlength=classes)
    wanted = (predicted.double() * share).ceil().long()
    place = torch.arange(len(labels)) - (predicted.cumsum(0) - predicted)[labels[by_class]]
    keep = torch.zeros(len(labels), dtype=torch.bool)
    keep[by_class] = place < wanted[labels[by_class]]
    missing = min(at_least, len(labels)) - int(keep.sum())
    if missing > 0:
        keep[nearest[~keep[nearest]][:missing]] = True
    index = keep.nonzero().flatten()
    return Selection(
        index=index,
        predicted_per_class=predicted,
        kept_per_class=torch.bincount(labels[index], minlength=classes),
        filled=max(missing, 0),
    )


def without_surest(
    selection: Selection, entropy: Tensor, labels: Tensor, *, share: float, at_least: int = 1
) -> Selection:
    """Return a selection without the given share of its images, the teacher's most confident ones.

    Images added for a starving class stay, and so do `at_least` images, if there are as many. Ties go to the
    earlier image.

    Shapes: entropy (N,): cross-entropy of the teacher to its own argmax; labels (N,), its classes. share in [0, 1).

    Source: airbench and our own measurements, by which the surest images teach least.
    """
    index = selection.index
    free = torch.ones(len(index), dtype=torch.bool)
    if selection.rescued is not None:
        free = ~torch.isin(index, selection.rescued.flatten())
    spare = max(0, min(round(share * len(index)), len(index) - at_least, int(free.sum())))
    surest = torch.sort(entropy[index].masked_fill(~free, float("inf")), stable=True).indices[:spare]
    keep = torch.ones(len(index), dtype=torch.bool)
    keep[surest] = False
    left = index[keep]
    counted = selection.kept_per_class
    if counted is not None:
        counted = torch.bincount(labels[left].long(), minlength=len(counted))
    weights = None if selection.weights is None else selection.weights[keep]
    return replace(selection, index=left, kept_per_class=counted, weights=weights)
