"""Backgrounds of characters on the web: plain colour, gradient, photograph."""

from __future__ import annotations

import random
from functools import lru_cache

from PIL import Image, ImageEnhance, ImageOps, ImageStat

Colour = tuple[int, int, int]

# Difference of brightness (0 to 255) at which people still read a character on its ground.
_LEGIBLE = 80


@lru_cache(maxsize=1)
def load_photos() -> tuple[Image.Image, ...]:
    """Return the two real photographs that scikit-learn ships (640 x 427 pixels)."""
    from sklearn.datasets import load_sample_images

    return tuple(Image.fromarray(pixels) for pixels in load_sample_images().images)


def random_colour(draw: random.Random) -> Colour:
    """Return any RGB colour."""
    return draw.randrange(256), draw.randrange(256), draw.randrange(256)


def legible_colour(ground: Image.Image, draw: random.Random) -> Colour:
    """Return a random colour that stands out from the mean of its ground."""
    behind = _brightness(*ImageStat.Stat(ground).mean[:3])
    while True:
        colour = random_colour(draw)
        if abs(_brightness(*colour) - behind) >= _LEGIBLE:
            return colour


def _brightness(red: float, green: float, blue: float) -> float:
    return 0.299 * red + 0.587 * green + 0.114 * blue


def plain(size: tuple[int, int], draw: random.Random) -> Image.Image:
    """Return one colour."""
    return Image.new("RGB", size, random_colour(draw))


def gradient(size: tuple[int, int], draw: random.Random) -> Image.Image:
    """Return one colour fading into another, in any direction."""
    ramp = Image.linear_gradient("L").rotate(draw.uniform(0, 360), Image.Resampling.BILINEAR)
    # The middle of the turned square has no corners without ramp.
    inner = ramp.resize(size, Image.Resampling.BILINEAR, box=(48, 48, 208, 208))
    return ImageOps.colorize(inner, random_colour(draw), random_colour(draw))


def photo_patch(size: tuple[int, int], draw: random.Random) -> Image.Image:
    """Return a piece of a photograph, near or far, in changed light."""
    photo = draw.choice(load_photos())
    width, height = size
    farthest = min(photo.width / width, photo.height / height)
    zoom = farthest ** draw.uniform(-0.3, 1.0)  # every scale equally often, not mostly whole photos
    left = draw.uniform(0, photo.width - zoom * width)
    top = draw.uniform(0, photo.height - zoom * height)
    box = (left, top, left + zoom * width, top + zoom * height)
    patch = photo.resize(size, Image.Resampling.BILINEAR, box=box)
    if draw.random() < 0.5:
        patch = ImageOps.mirror(patch)
    patch = ImageEnhance.Brightness(patch).enhance(draw.uniform(0.6, 1.4))
    return ImageEnhance.Color(patch).enhance(draw.uniform(0.0, 1.8))
