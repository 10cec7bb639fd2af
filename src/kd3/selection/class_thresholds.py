"""Confidence thresholds by class."""

from __future__ import annotations

from torch import Tensor


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
