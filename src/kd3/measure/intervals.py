"""Uncertainty of a share measured on a number of images: intervals and bounds in closed form."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.special import betaincinv, ndtri

LEVEL = 0.95  # of every interval
Z = float(ndtri((1 + LEVEL) / 2))


@dataclass(frozen=True)
class Interval:
    """A figure in percent or points, with its interval at 95% confidence."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} ({self.low:.1f} to {self.high:.1f})"

    def signed(self) -> str:
        """Format it with signs, as a difference."""
        return f"{self.value:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


def share(count: int, images: int) -> Interval:
    """Return a share of independent images, in percent, with Wilson's interval. `images` is at least 1.

    Source: Wilson (1927), https://doi.org/10.1080/01621459.1927.10502953.

    >>> print(share(90, 100))
    90.0 (82.6 to 94.5)
    """
    z, p = Z, count / images
    middle = (p + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * (p * (1 - p) / images + z**2 / (4 * images**2)) ** 0.5
    # At either end the interval touches it, up to rounding.
    return Interval(100 * p, 100 * max(0.0, min(middle - half, p)), 100 * min(1.0, max(middle + half, p)))


def paired_difference(gained: int, lost: int, images: int) -> Interval:
    """Return the difference of two classifiers' accuracies on the same images, in points, with its interval.

    Only images that exactly one of them gets right count: b of `gained`, c of `lost`. With half an image added to each
    of the four cells, so that n = images + 2: d = (b - c) / n, and d ± z sqrt(b + c - (b - c)² / n) / n.

    Args:
        gained: images that only the first gets right.
        lost: images that only the second gets right.
        images: all of them, at least 1.

    Source: Agresti and Min (2005), https://doi.org/10.1002/sim.1781.

    >>> print(paired_difference(10, 30, 200).signed())
    -10.0 (-16.0 to -3.8)
    """
    n, b, c = images + 2, gained + 0.5, lost + 0.5
    middle = (b - c) / n
    half = Z * (b + c - (b - c) ** 2 / n) ** 0.5 / n
    low, high = max(-1.0, middle - half), min(1.0, middle + half)
    return Interval(100 * (gained - lost) / images, 100 * low, 100 * high)


def most(count: int, images: int, confidence: float) -> float:
    """Return the one-sided upper bound of a share at a confidence in (0, 1): Clopper and Pearson's, exact.

    For any true share of independent images, the bound lies below it in at most 1 - confidence of the samples.

    Source: Clopper and Pearson (1934), https://doi.org/10.1093/biomet/26.4.404.

    >>> round(most(0, 299, 0.95), 5)
    0.00997
    """
    return 1.0 if count >= images else float(betaincinv(count + 1, images - count, confidence))
