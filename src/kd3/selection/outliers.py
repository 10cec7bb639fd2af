"""Exclusion of images unlike anything the teacher was trained on, from pools with many of them.

Images are judged by their distance to the lost data's statistics in the teacher's batch norms. A shift moves the
distances of all images alike; irrelevant images spread them. Share of images farther than 2.5 times the 5th percentile:
at most 10% for a ResNet-56 on the lost data itself, on a clean crawl, and on this crawl blurred, noisy, grey, in low
resolution, or drawn as edges; 28% for a WRN-16-2 at 64 pixels on its lost data and on the crawl; 78% where nine of ten
images show text, flat colours, noise, or shapes. Ours; see docs/results/inherit-fit-recall.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kd3.selection.select import Selection, select_everything

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
