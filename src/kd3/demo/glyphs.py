"""Characters as grey masks, in the fonts that matplotlib ships."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

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
