"""Images of no class, as crawls contain them: text, flat colours, gradients, noise, shapes, textures."""

from __future__ import annotations

import string
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Draw = np.random.Generator
Colour = tuple[int, int, int]

LEGIBLE = 80.0  # difference of brightness, 0 to 255, at which people still read a text on its ground
LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


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


def noise(side: int, draw: Draw) -> Image.Image:
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


KINDS: tuple[Callable[[int, Draw], Image.Image], ...] = (text, flat, gradient, noise, shapes, texture)
LETTERS = list(string.ascii_letters + string.digits)


def _colour(draw: Draw) -> Colour:
    red, green, blue = (int(value) for value in draw.integers(0, 256, 3))
    return red, green, blue


def _ground(side: int, draw: Draw) -> tuple[Image.Image, Colour]:
    """Return a ground of one colour, and another that stands out from it."""
    ground = _colour(draw)
    ink = _colour(draw)
    while abs(float(LUMA @ np.subtract(ink, ground))) < LEGIBLE:
        ink = _colour(draw)
    return Image.new("RGB", (side, side), ground), ink


def _picture(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))
