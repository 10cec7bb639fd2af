"""The demo's one picture: kept and refused images of each class, and the resulting accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

IMAGES_SHOWN = 9  # per class, on either side

# All measures are in pixels of the finished picture, from its upper left corner.
_DPI = 100
_TILE, _GAP = 64, 3  # twice the side of a 32-pixel image: nothing is smeared
_PITCH = _TILE + _GAP
_BLOCK = IMAGES_SHOWN * _PITCH - _GAP
_MARGIN = 28
_NAME_COLUMN, _COUNT_COLUMN = 56, 70
_KEPT_LEFT = _MARGIN + _NAME_COLUMN + _COUNT_COLUMN
_REFUSED_LEFT = _KEPT_LEFT + _BLOCK + 14 + _COUNT_COLUMN
_WIDTH = _REFUSED_LEFT + _BLOCK + _MARGIN
_ROWS_TOP = 138
_BAR, _BAR_PITCH, _PERCENT_COLUMN = 22, 34, 80

_INK, _FAINT, _PAPER, _EMPTY = "#1d2733", "#6b7785", "#ffffff", "#f1f3f5"
_KEPT_COLOUR, _REFUSED_COLOUR = "#0b7a6f", "#b4481e"
_BAR_COLOURS = {"plain": "#9aa5b1", "accent": _KEPT_COLOUR}


@dataclass(frozen=True)
class ClassRow:
    """The last selection's decisions on the images of one predicted class."""

    name: str
    kept: np.ndarray  # uint8 (n, 3, H, W): examples; the first `IMAGES_SHOWN` are drawn
    kept_count: int  # of all, not of the examples
    refused: np.ndarray  # uint8 (n, 3, H, W)
    refused_count: int


@dataclass(frozen=True)
class Bar:
    """One accuracy."""

    name: str
    percent: float  # 0 to 100
    emphasis: bool = False  # draw it in colour


def draw(path: Path, *, title: str, subtitle: str, rows: Sequence[ClassRow], bars: Sequence[Bar]) -> None:
    """Write the picture as a PNG file (about 300 KB for ten classes)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows_bottom = _ROWS_TOP + len(rows) * _PITCH
    height = rows_bottom + 56 + len(bars) * _BAR_PITCH + _MARGIN
    figure = Figure(figsize=(_WIDTH / _DPI, height / _DPI), dpi=_DPI, facecolor=_PAPER)
    canvas = FigureCanvasAgg(figure)
    page = _Page(figure, height)
    page.text(_MARGIN, 38, title, size=19, weight="bold")
    page.text(_MARGIN, 70, subtitle, size=11.5, color=_FAINT)
    _draw_headings(page, rows)
    for number, row in enumerate(rows):
        _draw_row(page, _ROWS_TOP + number * _PITCH, row)
    _draw_bars(page, rows_bottom + 36, bars)
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    drawn = Image.fromarray(pixels).convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.save(path, "PNG", optimize=True)


class _Page:
    """A figure addressed in pixels, downwards."""

    def __init__(self, figure: Figure, height: int) -> None:
        self.figure = figure
        self.height = height

    def text(self, x: float, y: float, words: str, **style: Any) -> None:
        """Write at a point: left aligned and centred on the line, unless told otherwise."""
        settings = {"color": _INK, "va": "center", **style}
        self.figure.text(x / _WIDTH, 1 - y / self.height, words, **settings)

    def pixels(self, x: int, y: int, image: np.ndarray) -> None:
        """Lay down an image (H, W, 3), pixel for pixel."""
        self.figure.figimage(image, xo=x, yo=self.height - y - image.shape[0], origin="upper")

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """Fill a rectangle."""
        from matplotlib.patches import Rectangle

        corner = (x / _WIDTH, 1 - (y + height) / self.height)
        patch = Rectangle(
            corner,
            width / _WIDTH,
            height / self.height,
            transform=self.figure.transFigure,
            facecolor=colour,
            edgecolor="none",
            zorder=-1,  # below the thumbnails
        )
        self.figure.add_artist(patch)


def _draw_headings(page: _Page, rows: Sequence[ClassRow]) -> None:
    kept, refused = sum(row.kept_count for row in rows), sum(row.refused_count for row in rows)
    y = _ROWS_TOP - 24
    page.text(_MARGIN, y, "taken for", size=10.5, color=_FAINT)
    page.text(_KEPT_LEFT, y, f"kept to learn from: {kept:,}", size=13.5, weight="bold", color=_KEPT_COLOUR)
    page.text(_REFUSED_LEFT, y, f"refused: {refused:,}", size=13.5, weight="bold", color=_REFUSED_COLOUR)


def _draw_row(page: _Page, top: int, row: ClassRow) -> None:
    middle = top + _TILE / 2
    page.text(_MARGIN, middle, row.name, size=20 if len(row.name) <= 2 else 11, weight="bold")
    sides = (
        (_KEPT_LEFT, row.kept, row.kept_count, _KEPT_COLOUR),
        (_REFUSED_LEFT, row.refused, row.refused_count, _REFUSED_COLOUR),
    )
    for left, images, count, colour in sides:
        page.text(left - 12, middle, f"{count:,}", size=12, ha="right", color=colour)
        page.box(left, top, _BLOCK, _TILE, _EMPTY)
        for place, image in enumerate(images[:IMAGES_SHOWN]):
            page.pixels(left + place * _PITCH, top, _tile(image))


def _tile(image: np.ndarray) -> np.ndarray:
    """Return an image (3, H, W) as a thumbnail (TILE, TILE, 3)."""
    # Nobody sees the two lowest bits of a thumbnail, and without them the file is a third smaller.
    shown = ImageOps.posterize(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))), 6)
    whole_pixels = _TILE % shown.width == 0 and _TILE % shown.height == 0
    resampling = Image.Resampling.NEAREST if whole_pixels else Image.Resampling.BICUBIC
    return np.asarray(shown.resize((_TILE, _TILE), resampling))


def _draw_bars(page: _Page, top: int, bars: Sequence[Bar]) -> None:
    left = _KEPT_LEFT
    full = _WIDTH - _MARGIN - _PERCENT_COLUMN - left  # the length of 100 %
    page.text(_MARGIN, top, "accuracy on the put-away test digits", size=13.5, weight="bold")
    for number, bar in enumerate(bars):
        y = top + 24 + number * _BAR_PITCH
        page.text(left - 12, y + _BAR / 2, bar.name, size=12, ha="right")
        page.box(left, y, full, _BAR, _EMPTY)
        colour = _BAR_COLOURS["accent" if bar.emphasis else "plain"]
        page.box(left, y, full * bar.percent / 100, _BAR, colour)
        page.text(left + full + 12, y + _BAR / 2, f"{bar.percent:.1f} %", size=12, weight="bold")
