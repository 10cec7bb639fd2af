"""Images in a page: pixels as data URLs, in grids with one thing in common."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

LARGEST_TILE = 104  # pixels; larger images are scaled down
SMALL_TILE = 48  # up to here pixels are shown as squares
JPEG_QUALITY = 85


@dataclass(frozen=True)
class Tile:
    """An image and its caption."""

    name: str  # alternative text: the image's name
    caption: str  # lines, parted by " | "
    pixels: np.ndarray = field(repr=False)  # (3, N, N) uint8


@dataclass(frozen=True)
class Grid:
    """Images with one thing in common."""

    title: str
    about: str
    tiles: list[Tile]


def shown(grid: Grid) -> dict[str, Any]:
    """Return a grid for the page's template."""
    small = bool(grid.tiles) and grid.tiles[0].pixels.shape[-1] <= SMALL_TILE
    return {"title": grid.title, "about": grid.about, "tiles": [_shown(tile) for tile in grid.tiles], "small": small}


def _shown(tile: Tile) -> dict[str, Any]:
    source, side = _source(tile.pixels)
    return {
        "source": source,
        "side": side,
        "name": tile.name,
        "caption": tile.caption,
        "lines": tile.caption.split(" | "),
    }


def _source(pixels: np.ndarray) -> tuple[str, int]:
    """Return an image as a data URL, and its side."""
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    buffer = io.BytesIO()
    if image.width > SMALL_TILE:
        side = min(image.width, 2 * LARGEST_TILE)
        image.resize((side, side), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=JPEG_QUALITY)
        kind = "jpeg"
    else:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", min(image.width, LARGEST_TILE)
