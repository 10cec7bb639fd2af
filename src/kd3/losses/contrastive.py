"""Tell the two views of one image from all others."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kd3.losses.precision import widen


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
