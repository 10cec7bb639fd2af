"""Pull the student's projected feature map towards the teacher's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kd3.losses.precision import widen
from kd3.ranks import ALONE, Ranks


def alignment_weights(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return how much each image counts in the alignment: more where the two networks disagree.

    w_i = sigmoid(||z_S(x_i) - z_T(x_i)||_2), without a gradient: 1/2 where the logits are equal,
    towards 1 where they differ.

    Shapes: both logits (B, K) -> (B,), in [1/2, 1].

    Source: KD3 (arXiv 2307.11469), weighted feature alignment.

    >>> alignment_weights(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
    tensor([0.9933])
    """
    difference = widen(student_logits).detach() - widen(teacher_logits).detach()
    return torch.sigmoid(torch.linalg.vector_norm(difference, dim=1))


def match_size(feature_map: Tensor, other: Tensor) -> Tensor:
    """Average-pool `feature_map` to `other`'s height and width where it is the larger one.

    Shapes: (B, C, h, w), (B, C', h', w') -> (B, C, min(h, h'), min(w, w')).
    """
    height = min(feature_map.shape[2], other.shape[2])
    width = min(feature_map.shape[3], other.shape[3])
    if (height, width) == tuple(feature_map.shape[2:]):
        return feature_map
    return F.adaptive_avg_pool2d(feature_map, (height, width))


def feature_alignment(
    projected: Tensor,
    teacher_features: Tensor,
    *,
    weights: Tensor | None = None,
    relative: bool = False,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Return the mean over images, channels and places of w_i * (r(F_S(x_i)) - F_T(x_i))^2.

    `projected` is the projector's output r(F_S(x)); `weights` are those of `alignment_weights`
    (None: every image counts 1, as in SimKD, arXiv 2203.14001). With `relative` the result is
    divided by the batch mean of F_T(x)^2, which makes it a share of the teacher's feature energy:
    0 for a perfect match, about the mean weight for a projector that outputs nothing, whatever
    the scale of the teacher's features.

    Shapes: (B, C, h, w), (B, C, h', w'), (B,) -> (). The larger map is average-pooled to the
    smaller one's size. The sum is taken in float32 or wider. The batch whose features are averaged for
    `relative` is that of all `ranks`.

    Raises:
        ValueError: channels or batch sizes differ.

    Source: KD3 (arXiv 2307.11469), weighted feature alignment. `relative` is ours: the raw mean square is a
    small number for small feature values and vanishes beside any other term.
    """
    if projected.shape[:2] != teacher_features.shape[:2]:
        raise ValueError(
            f"projected features {tuple(projected.shape)} and teacher features "
            f"{tuple(teacher_features.shape)} must agree in batch size and channels"
        )
    target = widen(match_size(teacher_features, projected)).detach()
    student = widen(match_size(projected, target))
    per_image = (student - target).square().mean(dim=(1, 2, 3))
    if weights is not None:
        per_image = per_image * weights
    loss = per_image.mean()
    if relative:
        loss = loss / ranks.mean(target.square().mean()).clamp_min(1e-12)
    return loss
