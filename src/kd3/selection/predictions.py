"""Predictions of the networks for each image: a class and a confidence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

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
