"""The terms of the objectives: tensors in, a scalar out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kd3.runtime.ranks import ALONE, Ranks


def widen(values: Tensor) -> Tensor:
    """Return float32 and float64 as they are, anything narrower as float32."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def nt_xent(embeddings: Tensor, other_embeddings: Tensor, *, temperature: float) -> Tensor:
    """Return the normalised temperature-scaled cross-entropy of two views of a batch.

    With the 2B vectors v = [u_1..u_B, u'_1..u'_B] and s(a, b) = a.b / temperature, each v_i has
    one positive p(i) (the other view of its image) and 2B - 2 negatives:
    mean over i of  -s(v_i, v_p(i)) + log sum_{j != i} exp s(v_i, v_j).

    Both inputs must be of unit length; temperature > 0. The result is at least 0 up to rounding, and
    log(2B - 1) where all vectors coincide.

    Shapes: (B, D), (B, D) -> ().

    Source: SimCLR (arXiv 2002.05709), equation 1; KD3 (arXiv 2307.11469) uses it
    with the MixDistribution view and temperature 0.3.

    >>> u = torch.eye(2)
    >>> round(nt_xent(u, u, temperature=1.0).item(), 4)  # log(e + 2) - 1
    0.5514
    """
    if embeddings.shape != other_embeddings.shape:
        raise ValueError(
            f"the two views must have one shape, got {tuple(embeddings.shape)} and {tuple(other_embeddings.shape)}"
        )
    batch = embeddings.shape[0]
    vectors = widen(torch.cat([embeddings, other_embeddings]))
    with torch.autocast(vectors.device.type, enabled=False):
        similarity = vectors @ vectors.T / temperature
    itself = torch.eye(2 * batch, dtype=torch.bool, device=vectors.device)
    similarity = similarity.masked_fill(itself, float("-inf"))
    positive = torch.arange(2 * batch, device=vectors.device).roll(batch)
    return F.cross_entropy(similarity, positive)


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


def transition_matrix(mistakes: Tensor, accuracy: Tensor | float) -> Tensor:
    """Return Q, where Q_ij is the probability that an image of class i was labelled j.

    The diagonal is `accuracy`; the rest of each row shares 1 - accuracy by a softmax of `mistakes`, whose own diagonal
    is ignored. Zeros spread it evenly. Rows sum to 1.

    Shapes: mistakes (K, K), K >= 2; accuracy in [0, 1], a number or () -> (K, K).

    Source: Chen et al., Learning Student Networks in the Wild (DFND, CVPR 2021), noise adaptation matrix; the fixed
    diagonal and the even start are those of its public code.
    """
    own = torch.eye(len(mistakes), dtype=torch.bool, device=mistakes.device)
    others = torch.softmax(widen(mistakes).masked_fill(own, float("-inf")), dim=1)
    return torch.where(own, torch.as_tensor(accuracy, dtype=others.dtype), (1 - accuracy) * others)


def adapted_cross_entropy(student_logits: Tensor, labels: Tensor, transition: Tensor) -> Tensor:
    """Return the mean of -log (softmax(z_S) Q)_y over a batch.

    Shapes: (B, K), (B,) int64, (K, K) -> (). At least 0.

    Source: Chen et al., Learning Student Networks in the Wild (DFND, CVPR 2021).
    """
    adapted = torch.softmax(widen(student_logits), dim=1) @ transition
    return F.nll_loss(adapted.clamp_min(1e-12).log(), labels)


def soft_target_divergence(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """Return T^2 * KL(softmax(z_T / T) || softmax(z_S / T)), the mean over the batch.

    The factor T^2 keeps the gradient's size independent of the temperature T > 0. No gradient
    reaches the teacher's logits. At least 0; 0 where the softened probabilities are equal.

    Shapes: (B, K), (B, K) -> ().

    Source: Hinton et al., Distilling the Knowledge in a Neural Network (arXiv 1503.02531), section 2.
    """
    student_log = F.log_softmax(widen(student_logits) / temperature, dim=1)
    teacher_log = F.log_softmax(widen(teacher_logits).detach() / temperature, dim=1)
    return F.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True) * temperature**2
