"""One picture of the crawl: a digit in some style, or something that is not a digit."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from kd3.demo.backgrounds import gradient, legible_colour, photo_patch, plain
from kd3.demo.glyphs import (
    DIGITS,
    LETTERS,
    SYMBOLS,
    Placement,
    Typefaces,
    draw_glyph,
    find_typefaces,
    place_glyph,
    wobble,
)

# Results of a web search for "digits": a good half are digits. Styles and contents are drawn independently, so no style
# reveals the content.
_CONTENTS = {"digit": 0.56, "letter": 0.20, "symbol": 0.08, "photo": 0.16}
_LOOKS = {"scan": 0.30, "paper": 0.10, "poster": 0.30, "on photo": 0.30}
_SHORTEST_SIDE, _LONGEST_SIDE = 40, 90
_SQUARE_SHARE = 0.6
_LONGEST_RATIO = 1.35


@dataclass(frozen=True)
class Picture:
    """A picture and its true content: a digit `0` to `9`, `letter`, `symbol` or `photo`."""

    image: Image.Image  # RGB or L
    truth: str


def make_picture(draw: random.Random) -> Picture:
    """Return the next picture of a crawl."""
    content = _weighted(_CONTENTS, draw)
    size = _random_size(draw)
    if content == "photo":
        return Picture(photo_patch(size, draw), "photo")
    character = draw.choice(_characters(content))
    image = _draw_character(character, size, draw)
    return Picture(image, character if content == "digit" else content)


def make_digit(digit: str, draw: random.Random) -> Image.Image:
    """Return a picture of one given digit, in any look."""
    return _draw_character(digit, _random_size(draw), draw)


def _weighted(shares: dict[str, float], draw: random.Random) -> str:
    return draw.choices(list(shares), weights=list(shares.values()))[0]


def _characters(content: str) -> str:
    alphabets = {"digit": DIGITS, "letter": LETTERS, "symbol": SYMBOLS}
    return find_typefaces().characters(alphabets[content])


def _random_size(draw: random.Random) -> tuple[int, int]:
    short = draw.randint(_SHORTEST_SIDE, _LONGEST_SIDE)
    if draw.random() < _SQUARE_SHARE:
        return short, short
    long = round(short * draw.uniform(1.0, _LONGEST_RATIO))
    return (short, long) if draw.random() < 0.5 else (long, short)


def _draw_character(character: str, size: tuple[int, int], draw: random.Random) -> Image.Image:
    glyph = _random_glyph(find_typefaces(), character, draw)
    look = _weighted(_LOOKS, draw)
    if look == "scan":
        return _scan(glyph, size, draw)
    if look == "paper":
        return _on_paper(glyph, size, draw)
    ground = photo_patch(size, draw) if look == "on photo" else _flat_ground(size, draw)
    return _printed_on(ground, glyph, draw)


def _random_glyph(typefaces: Typefaces, character: str, draw: random.Random) -> Image.Image:
    return draw_glyph(character, draw.choice(typefaces.fonts_of[character]))


def _scan(glyph: Image.Image, size: tuple[int, int], draw: random.Random) -> Image.Image:
    """Return bright, unsteady, soft ink on a dark ground, in grey: the look nearest to the lost data."""
    mask = wobble(place_glyph(glyph, size, _steady(draw)), draw, strength=draw.uniform(0, 0.25))
    ground, ink = draw.randint(0, 60), draw.randint(170, 255)
    return _as_scanned(mask, ground, ink, draw)


def _on_paper(glyph: Image.Image, size: tuple[int, int], draw: random.Random) -> Image.Image:
    """Return dark ink on a bright sheet, in grey."""
    mask = wobble(place_glyph(glyph, size, _steady(draw)), draw, strength=draw.uniform(0, 0.25))
    ground, ink = draw.randint(190, 255), draw.randint(0, 90)
    return _as_scanned(mask, ground, ink, draw)


def _as_scanned(mask: Image.Image, ground: int, ink: int, draw: random.Random) -> Image.Image:
    """Return ink on its ground with the blur and the grain of a scanner."""
    soft = mask.filter(ImageFilter.GaussianBlur(draw.uniform(0.0, 0.045) * min(mask.size)))
    levels = ground + (ink - ground) * (np.asarray(soft, dtype=np.float32) / 255)
    grain = np.random.default_rng(draw.getrandbits(32)).normal(0, draw.uniform(0, 8), levels.shape)
    return Image.fromarray(np.clip(levels + grain, 0, 255).astype(np.uint8))


def _printed_on(ground: Image.Image, glyph: Image.Image, draw: random.Random) -> Image.Image:
    """Return a character in one colour on any ground, as a sign or a cover shows it."""
    mask = place_glyph(glyph, ground.size, _loose(draw))
    ink = Image.new("RGB", ground.size, legible_colour(ground, draw))
    image = Image.composite(ink, ground, mask)
    if draw.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(draw.uniform(0.3, 1.2)))
    return image


def _flat_ground(size: tuple[int, int], draw: random.Random) -> Image.Image:
    return plain(size, draw) if draw.random() < 0.6 else gradient(size, draw)


def _steady(draw: random.Random) -> Placement:
    return Placement(
        height=draw.uniform(0.62, 0.95),
        turn=draw.gauss(0, 6),
        shear=draw.gauss(0, 0.12),
        stretch=draw.uniform(0.85, 1.35),
        shift=(draw.gauss(0, 0.03), draw.gauss(0, 0.03)),
    )


def _loose(draw: random.Random) -> Placement:
    return Placement(
        height=draw.uniform(0.50, 0.95),
        turn=draw.gauss(0, 10),
        shear=draw.gauss(0, 0.15),
        stretch=draw.uniform(0.75, 1.35),
        shift=(draw.gauss(0, 0.05), draw.gauss(0, 0.05)),
    )
