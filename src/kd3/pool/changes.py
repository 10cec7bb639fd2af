"""Changes of images by a dial, where strength 0 is the image itself, and images of no class as crawls contain them.

Image changes of adjustable strength; strength 0 is the image itself. Each takes an image uint8 (3, N, N), a strength
and the image's own randomness, and returns uint8 (3, N, N).
"""

from __future__ import annotations

import io
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from kd3.runtime.errors import KD3Error, unknown_name

Draw = np.random.Generator
Colour = tuple[int, int, int]

LEGIBLE = 80.0  # difference of brightness, 0 to 255, at which people still read a text on its ground
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


def off_topic_image(side: int, draw: Draw) -> np.ndarray:
    """Return a picture of some kind in `KINDS`: uint8 (3, side, side), all of it from `draw`."""
    kind = KINDS[int(draw.integers(len(KINDS)))]
    return np.ascontiguousarray(np.asarray(kind(side, draw).convert("RGB")).transpose(2, 0, 1))


def text(side: int, draw: Draw) -> Image.Image:
    """Return lines of random words in one colour on another."""
    picture, ink = _ground(side, draw)
    size = max(6, round(side * draw.uniform(0.12, 0.45)))
    font, pen = ImageFont.load_default(size), ImageDraw.Draw(picture)
    top = side * draw.uniform(-0.1, 0.2)
    while top < side:
        words = ("".join(draw.choice(LETTERS, draw.integers(2, 9))) for _ in range(1 + side // size))
        pen.text((side * draw.uniform(-0.2, 0.1), top), " ".join(words), fill=ink, font=font)
        top += size * draw.uniform(1.0, 1.5)
    return picture


def flat(side: int, draw: Draw) -> Image.Image:
    """Return one colour."""
    return Image.new("RGB", (side, side), _colour(draw))


def gradient(side: int, draw: Draw) -> Image.Image:
    """Return one colour that fades into another, in any direction."""
    turn = draw.uniform(0, 2 * np.pi)
    place = np.linspace(-1, 1, side)
    ramp = np.cos(turn) * place[:, None] + np.sin(turn) * place[None]
    ramp = (ramp - ramp.min()) / max(float(np.ptp(ramp)), 1e-9)
    first, second = np.array(_colour(draw)), np.array(_colour(draw))
    return _picture(first + ramp[:, :, None] * (second - first))


def _noise(side: int, draw: Draw) -> Image.Image:
    """Return independent pixels, grey or coloured, about some mean."""
    channels = 3 if draw.random() < 0.5 else 1
    values = draw.normal(draw.uniform(60, 200), draw.uniform(10, 80), (side, side, channels))
    return _picture(np.broadcast_to(values, (side, side, 3)))


def shapes(side: int, draw: Draw) -> Image.Image:
    """Return a few plain shapes on a plain ground, as logos and icons are."""
    picture, ink = _ground(side, draw)
    pen = ImageDraw.Draw(picture)
    for number in range(int(draw.integers(1, 5))):
        colour = ink if number == 0 else _colour(draw)
        x, y = draw.uniform(0.1, 0.9, 2) * side
        reach = draw.uniform(0.1, 0.4) * side
        box = (x - reach, y - reach, x + reach, y + reach)
        kind = draw.integers(4)
        if kind == 0:
            pen.ellipse(box, fill=colour)
        elif kind == 1:
            pen.rectangle(box, fill=colour)
        elif kind == 2:
            corners, turn = int(draw.integers(3, 7)), float(draw.uniform(0, 360))
            pen.regular_polygon((x, y, reach), corners, rotation=turn, fill=colour)
        else:
            start, end = sorted(float(angle) for angle in draw.uniform(0, 360, 2))
            pen.arc(box, start, end, fill=colour, width=max(1, side // 12))
    return picture


def texture(side: int, draw: Draw) -> Image.Image:
    """Return a pattern without an object: stripes, checks, or noise of one grain."""
    kind = draw.integers(3)
    if kind == 2:
        grain = draw.uniform(0.02, 0.12) * side
        rough = Image.fromarray(draw.integers(0, 256, (side, side), dtype=np.uint8))
        soft = np.asarray(rough.filter(ImageFilter.GaussianBlur(grain)), dtype=np.float32)
        field = (soft - soft.min()) / max(float(np.ptp(soft)), 1e-9)
    else:
        turn, pitch = draw.uniform(0, np.pi), side * draw.uniform(0.06, 0.4)
        down, across = np.mgrid[:side, :side] * (2 * np.pi / pitch)
        field = (np.sin(np.cos(turn) * down + np.sin(turn) * across) + 1) / 2
        if kind == 1:
            other = np.sin(np.sin(turn) * down - np.cos(turn) * across)
            field = ((field > 0.5) ^ (other > 0)).astype(np.float64)
    first, second = np.array(_colour(draw)), np.array(_colour(draw))
    return _picture(first + field[:, :, None] * (second - first))


KINDS: tuple[Callable[[int, Draw], Image.Image], ...] = (text, flat, gradient, _noise, shapes, texture)
LETTERS = list(string.ascii_letters + string.digits)


def _colour(draw: Draw) -> Colour:
    red, green, blue = (int(value) for value in draw.integers(0, 256, 3))
    return red, green, blue


def _ground(side: int, draw: Draw) -> tuple[Image.Image, Colour]:
    """Return a ground of one colour, and another that stands out from it."""
    ground = _colour(draw)
    ink = _colour(draw)
    while abs(float(_LUMA @ np.subtract(ink, ground))) < LEGIBLE:
        ink = _colour(draw)
    return Image.new("RGB", (side, side), ground), ink


def _picture(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))


LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32).reshape(3, 1, 1)  # ITU-R BT.601
LEAST_CONTRAST = 64.0  # in grey levels: minimum slope drawn black, so that noise in flat areas stays invisible
BEST_QUALITY, WORST_QUALITY = 95, 3
NOISE_DRAWS = 4  # separates these random numbers from other uses of a seed

Place = Sequence[int]  # of an image's random numbers


def greyscale(image: np.ndarray, strength: float, place: Place) -> np.ndarray:
    """Blend with the luma (ITU-R BT.601)."""
    return _blend(image, _luma(image), strength)


def posterise(image: np.ndarray, strength: float, place: Place) -> np.ndarray:
    """Leave fewer levels of each colour, evenly spaced from 0 to 255: 256 at strength 0, 16 at 4/7, 2 at 1."""
    steps = round(2 ** (8 - 7 * strength)) - 1
    levels = np.round(np.arange(256) * (steps / 255)) * (255 / steps)
    posterised: np.ndarray = _as_bytes(levels)[image]
    return posterised


def edges(image: np.ndarray, strength: float, place: Place) -> np.ndarray:
    """Blend with a drawing of the edges: Sobel slopes of the luma, dark on white."""
    padded = np.pad(_luma(image), 1, mode="edge")
    down = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    across = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    slopes = np.hypot(down[:, 2:] - down[:, :-2], across[2:] - across[:-2]) / 4
    black = max(float(np.percentile(slopes, 98)), LEAST_CONTRAST)
    return _blend(image, 255 * (1 - np.minimum(slopes / black, 1)), strength)


def blur(image: np.ndarray, strength: float, place: Place) -> np.ndarray:
    """Blur by a Gaussian whose sigma is this share of the side."""
    return _as_planes(_as_picture(image).filter(ImageFilter.GaussianBlur(strength * image.shape[-1])))


def noise(image: np.ndarray, strength: float, place: Place) -> np.ndarray:
    """Add Gaussian noise whose standard deviation is this share of 255, and clip."""
    draws = np.random.default_rng(place).standard_normal(image.shape, dtype=np.float32)
    return _as_bytes(image + (255 * strength) * draws)


def jpeg(image: np.ndarray, strength: float, place: Place) -> np.ndarray:
    """Compress: quality 95 just above strength 0, 3 at 1."""
    buffer = io.BytesIO()
    _as_picture(image).save(buffer, "JPEG", quality=round(BEST_QUALITY + strength * (WORST_QUALITY - BEST_QUALITY)))
    with Image.open(buffer) as opened:
        return _as_planes(opened)


def low_resolution(image: np.ndarray, strength: float, place: Place) -> np.ndarray:
    """Shrink to (1 - strength) of the side, at least 2 pixels, and enlarge again, as ingest would a small file."""
    side = image.shape[-1]
    small = min(side, max(2, round((1 - strength) * side)))
    shrunk = _as_picture(image).resize((small, small), Image.Resampling.BICUBIC)
    return _as_planes(shrunk.resize((side, side), Image.Resampling.BICUBIC))


def off_topic(image: np.ndarray, strength: float, place: Place) -> np.ndarray:
    """Replace this share of the images by pictures of no class; a larger share also replaces the images of a smaller
    one.
    """
    draw = np.random.default_rng(place)
    return off_topic_image(image.shape[-1], draw) if draw.random() < strength else image


@dataclass(frozen=True, slots=True)
class Change:
    """A change of images, with its maximum strength."""

    apply: Callable[[np.ndarray, float, Place], np.ndarray]
    summary: str
    most: float  # the range is 0..most

    def check(self, name: str, strength: float) -> None:
        """Raise KD3Error if a strength is outside the range."""
        if not 0 <= strength <= self.most:
            raise KD3Error(f"strength {strength} of change {name} is out of range; it may be 0 to {self.most:g}")


CHANGES = {
    "greyscale": Change(greyscale, "colours fade to their luma", 1.0),
    "posterise": Change(posterise, "fewer levels of each colour, two at strength 1", 1.0),
    "edges": Change(edges, "towards dark edges on white", 1.0),
    "blur": Change(blur, "Gaussian blur; the strength is sigma as a share of the side", 0.5),
    "noise": Change(noise, "Gaussian noise; the strength is its standard deviation as a share of 255", 1.0),
    "jpeg": Change(jpeg, "JPEG compression, quality 95 down to 3", 1.0),
    "low-resolution": Change(low_resolution, "shrunk by the strength, at most to 2 pixels, and enlarged again", 1.0),
    "off-topic": Change(off_topic, "so many images replaced by text, flat colours, noise, shapes, textures", 1.0),
}


def find_change(name: str, strength: float) -> Change:
    """Return a change by its name.

    Raises:
        KD3Error: there is none of that name, or the strength is outside its range.
    """
    if name not in CHANGES:
        raise unknown_name("change", name, CHANGES)
    CHANGES[name].check(name, strength)
    return CHANGES[name]


def change_images(name: str, strength: float, images: np.ndarray, positions: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return changed copies of images: uint8 (B, 3, N, N) -> uint8 (B, 3, N, N).

    Random numbers of an image depend on `seed` and its position (B,), both at least 0, not on the batch. Strength 0
    changes nothing.

    Raises:
        KD3Error: there is no change of that name, or the strength is outside its range.
        ValueError: images are not uint8 (B, 3, N, N), or positions not one for each.
    """
    change = find_change(name, strength)
    shape = images.shape
    if images.dtype != np.uint8 or len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
        raise ValueError(f"images must be uint8 (B, 3, N, N), not {images.dtype} {shape}")
    changed: np.ndarray = images.copy()
    if strength == 0:
        return changed
    for number, position in zip(range(len(images)), positions, strict=True):
        changed[number] = change.apply(images[number], float(strength), (NOISE_DRAWS, seed, int(position)))
    return changed


def _luma(image: np.ndarray) -> np.ndarray:
    luma: np.ndarray = (image * LUMA).sum(axis=0)
    return luma


def _blend(image: np.ndarray, other: np.ndarray, strength: float) -> np.ndarray:
    return _as_bytes(image + strength * (other - image))


def _as_bytes(values: np.ndarray) -> np.ndarray:
    rounded: np.ndarray = np.clip(np.round(values), 0, 255).astype(np.uint8)
    return rounded


def _as_picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))


def _as_planes(picture: Image.Image) -> np.ndarray:
    planes: np.ndarray = np.asarray(picture).transpose(2, 0, 1)
    return planes
