"""Selection of images most like the lost data, and removal of those that teach least."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kd3.selection.predictions import Predictions
from kd3.selection.select import Selection


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
