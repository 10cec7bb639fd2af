"""A sheet of small images with a line below each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from kd3.review import style

GAP = 8
CAPTION = 18
HEAD = 92  # from the upper edge to the first row
_ENLARGE_TO, _LARGEST = 64, 128
_COLUMNS, _NARROWEST = 8, 8 * (64 + GAP) - GAP  # so that titles have room


@dataclass(frozen=True)
class Tile:
    """An image on the sheet."""

    pixels: np.ndarray  # uint8 (3, S, S)
    caption: str
    marked: bool = False  # framed and captioned in another colour


@dataclass(frozen=True)
class Layout:
    """Positions on a sheet, in pixels."""

    columns: int
    rows: int
    side: int  # of a tile

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the sheet."""
        width = max(_NARROWEST, self.columns * (self.side + GAP) - GAP)
        height = HEAD + self.rows * (self.side + CAPTION + GAP) - GAP
        return width + 2 * style.MARGIN, height + style.MARGIN

    def corner(self, number: int) -> tuple[int, int]:
        """Return the upper left corner of a tile."""
        row, column = divmod(number, self.columns)
        return style.MARGIN + column * (self.side + GAP), HEAD + row * (self.side + CAPTION + GAP)


def layout(tiles: int, image_size: int, *, at_most: int) -> Layout:
    """Return the layout for some tiles; sheets for equally many at most are equally wide."""
    if image_size < _ENLARGE_TO:
        side = image_size * max(1, round(_ENLARGE_TO / image_size))
    else:
        side = min(image_size, _LARGEST)
    columns = max(_COLUMNS, math.isqrt(max(at_most, 1) - 1) + 1)
    return Layout(columns, max(1, -(-tiles // columns)), side)


def draw_sheet(
    title: str, lines: Sequence[str], tiles: Sequence[Tile], *, place: Layout, colour: str = style.INK
) -> Image.Image:
    """Return a sheet: a title, two lines at most, and the tiles row by row; RGB.

    Small images are enlarged by a whole factor with hard edges, so pixels stay unchanged.
    """
    sheet = Image.new("RGB", place.size, style.PAPER)
    draw = ImageDraw.Draw(sheet)
    room = place.size[0] - 2 * style.MARGIN
    style.write(
        draw, (style.MARGIN, 40), style.shortened(title, style.TITLE_SIZE, room), style.TITLE_SIZE, colour, "ls"
    )
    for number, line in enumerate(lines[:2]):
        text = style.shortened(line, style.TEXT_SIZE, room)
        style.write(draw, (style.MARGIN, 60 + 18 * number), text, style.TEXT_SIZE, style.FAINT, "ls")
    for number, tile in enumerate(tiles):
        _put(sheet, draw, place.corner(number), tile, place.side)
    if not tiles:
        at = (style.MARGIN, HEAD + place.side // 2)
        style.write(draw, at, "no images", style.TEXT_SIZE, style.FAINT, "lm")
    return sheet


def _put(sheet: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], tile: Tile, side: int) -> None:
    image = Image.fromarray(np.ascontiguousarray(tile.pixels.transpose(1, 2, 0)))
    larger = side < image.width
    image = image.resize((side, side), Image.Resampling.LANCZOS if larger else Image.Resampling.NEAREST)
    left, top = corner
    sheet.paste(image, corner)
    if tile.marked:
        draw.rectangle((left - 3, top - 3, left + side + 2, top + side + 2), outline=style.MARKED, width=2)
    colour = style.MARKED if tile.marked else style.INK
    caption = style.shortened(tile.caption, style.SMALL_SIZE, side)
    style.write(draw, (left + side / 2, top + side + 5), caption, style.SMALL_SIZE, colour, "mt")
