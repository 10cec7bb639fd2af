"""One picture of the crawl: characters on the backgrounds of the web, or something that is not a digit."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont, ImageOps, ImageStat

DIGITS = "0123456789"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
SYMBOLS = "!?&%@#$+*=/<>{}[]()~^€£§¶∑∏∞≠≤≥√∫∂∇∈∪∩⊕←→↑↓↔αβγδλμπσφωΓΔΘΛΞΠΣΦΨΩ♠♣♥♦♪★☆☀☎✓✗❄"

# Families whose digits look like digits. Others in that folder put other shapes at those code
# points (cmsy10, cmex10), draw old-style figures (cmmi10) or a box for everything (LastResort).
_FAMILIES = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmb10", "cmr10", "cmss10", "cmti10", "cmtt10")
# TeX's encoding keeps letters and digits in their places, not punctuation.
_TEX_PREFIX = "cm"
_DRAWN_HEIGHT = 72  # font size in pixels: a little above the largest glyph of the crawl


@dataclass(frozen=True)
class Typefaces:
    """Fonts that can draw a character."""

    fonts_of: dict[str, tuple[Path, ...]]  # character -> font files, in a stable order

    def characters(self, among: str) -> str:
        """Return those characters that at least one font can draw."""
        return "".join(character for character in among if self.fonts_of[character])


@lru_cache(maxsize=1)
def find_typefaces() -> Typefaces:
    """Return the usable fonts of the installed matplotlib, by their available characters."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    fonts_of: dict[str, list[Path]] = {character: [] for character in DIGITS + LETTERS + SYMBOLS}
    for path in sorted((Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("*.ttf")):
        if not path.stem.startswith(_FAMILIES):
            continue
        drawable = set(FT2Font(str(path)).get_charmap())
        if path.stem.startswith(_TEX_PREFIX):
            drawable &= {ord(character) for character in DIGITS + LETTERS}
        for character, fonts in fonts_of.items():
            if ord(character) in drawable:
                fonts.append(path)
    return Typefaces({character: tuple(fonts) for character, fonts in fonts_of.items()})


@cache
def _font(path: Path) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), _DRAWN_HEIGHT)


@cache
def draw_glyph(character: str, font: Path) -> Image.Image:
    """Return one character, cropped to its ink, with a border of one clear pixel."""
    left, top, right, bottom = _font(font).getbbox(character)
    mask = Image.new("L", (math.ceil(right - left) + 2, math.ceil(bottom - top) + 2))
    ImageDraw.Draw(mask).text((1 - left, 1 - top), character, fill=255, font=_font(font))
    return mask


@dataclass(frozen=True)
class Placement:
    """Placement of a glyph in its picture."""

    height: float  # of the glyph, as a part of the picture's shorter side
    turn: float  # degrees
    shear: float  # sideways, per unit of height
    stretch: float  # width over height, against the font's own
    shift: tuple[float, float]  # of the glyph's centre from the picture's, as a part of its shorter side


def place_glyph(glyph: Image.Image, size: tuple[int, int], placement: Placement) -> Image.Image:
    """Return a mask of `size` with the glyph scaled, sheared, turned and shifted as given."""
    side = min(size)
    # A wide glyph ('W', an arrow) is bound by its width.
    scale = placement.height * side / max(glyph.height, 0.9 * glyph.width)
    wide, high = scale * placement.stretch, scale
    cos, sin = math.cos(math.radians(placement.turn)), math.sin(math.radians(placement.turn))
    # Pillow wants the way back, from picture to glyph: turn back, unshear, unscale.
    row_x = (cos + placement.shear * sin, sin - placement.shear * cos)
    row_y = (-sin, cos)
    a, b = row_x[0] / wide, row_x[1] / wide
    d, e = row_y[0] / high, row_y[1] / high
    centre_x = size[0] / 2 + placement.shift[0] * side
    centre_y = size[1] / 2 + placement.shift[1] * side
    c = glyph.width / 2 - a * centre_x - b * centre_y
    f = glyph.height / 2 - d * centre_x - e * centre_y
    return glyph.transform(size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BICUBIC)


def wobble(mask: Image.Image, draw: random.Random, *, strength: float, cells: int = 3) -> Image.Image:
    """Return the mask bent smoothly, as an unsteady hand would: a grid whose knots are moved.

    `strength` is how far a knot may move, as a part of a cell.
    """
    width, height = mask.size
    reach_x, reach_y = strength * width / cells, strength * height / cells
    xs = [round(width * step / cells) for step in range(cells + 1)]
    ys = [round(height * step / cells) for step in range(cells + 1)]
    knots = {
        (column, row): (x + draw.uniform(-reach_x, reach_x), y + draw.uniform(-reach_y, reach_y))
        for column, x in enumerate(xs)
        for row, y in enumerate(ys)
    }
    mesh = [
        (
            (xs[column], ys[row], xs[column + 1], ys[row + 1]),
            knots[column, row] + knots[column, row + 1] + knots[column + 1, row + 1] + knots[column + 1, row],
        )
        for column in range(cells)
        for row in range(cells)
    ]
    return mask.transform(mask.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


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


# Results of a web search for "digits": a good half are digits. Styles and contents are drawn independently, so no style
# reveals the content.
_CONTENTS = {"digit": 0.56, "letter": 0.20, "symbol": 0.08, "photo": 0.16}
_STYLES = {"scan": 0.30, "paper": 0.10, "poster": 0.30, "on photo": 0.30}
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
    style = _weighted(_STYLES, draw)
    if style == "scan":
        return _scan(glyph, size, draw)
    if style == "paper":
        return _on_paper(glyph, size, draw)
    ground = photo_patch(size, draw) if style == "on photo" else _flat_ground(size, draw)
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
