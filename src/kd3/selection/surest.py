"""Selection of the teacher's most confident images."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from kd3.selection.select import Selection


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
