"""One picture of all classes: predicted and kept images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from kd3.review import style

_HEAD, _ROW, _BAR_HEIGHT = 112, 26, 16
_NAME_WIDEST, _BAR_WIDTH, _SPACE = 200, 420, 14
_SHARE_WIDTH, _THRESHOLD_WIDTH = 56, 78


@dataclass(frozen=True)
class Row:
    """A class."""

    name: str
    predicted: int
    kept: int
    threshold: float
    rescued: int = 0  # images added because none was kept


def draw_overview(title: str, lines: Sequence[str], rows: Sequence[Row]) -> Image.Image:
    """Return a bar for each class: its length counts predictions, the filled part kept images; RGB."""
    size = style.TEXT_SIZE
    named = [style.shortened(row.name, size, _NAME_WIDEST) for row in rows]
    counts = [_counts(row) for row in rows]
    name_width = max(40.0, *(style.width_of(text, size) for text in [*named, "class"]))
    count_width = max(style.width_of(text, size) for text in [*counts, "kept of predicted"])
    bars = round(style.MARGIN + name_width + _SPACE)
    count_right = bars + _BAR_WIDTH + _SPACE + count_width
    share_right, threshold_right = count_right + _SHARE_WIDTH, count_right + _SHARE_WIDTH + _THRESHOLD_WIDTH
    width = round(threshold_right + style.MARGIN)
    picture = Image.new("RGB", (width, _HEAD + _ROW * len(rows) + style.MARGIN - 6), style.PAPER)
    draw = ImageDraw.Draw(picture)

    room = width - 2 * style.MARGIN
    head = style.shortened(title, style.TITLE_SIZE, room)
    style.write(draw, (style.MARGIN, 40), head, style.TITLE_SIZE, style.INK, "ls")
    for number, line in enumerate(lines[:2]):
        at = (style.MARGIN, 60 + 18 * number)
        style.write(draw, at, style.shortened(line, size, room), size, style.FAINT, "ls")
    for right, text in ((count_right, "kept of predicted"), (share_right, "share"), (threshold_right, "threshold")):
        style.write(draw, (right, _HEAD - 10), text, size, style.FAINT, "rs")
    style.write(draw, (bars - _SPACE, _HEAD - 10), "class", size, style.FAINT, "rs")

    longest = max([row.predicted for row in rows] + [1])
    for number, row in enumerate(rows):
        middle = _HEAD + _ROW * number + _ROW // 2
        top = middle - _BAR_HEIGHT // 2
        style.write(draw, (bars - _SPACE, middle), named[number], size, style.INK, "rm")
        for count, colour in ((row.predicted, style.EMPTY), (row.kept, style.KEPT)):
            if count:
                length = max(1, round(_BAR_WIDTH * count / longest))
                draw.rectangle((bars, top, bars + length - 1, top + _BAR_HEIGHT - 1), fill=colour)
        colour = style.MARKED if row.rescued else style.INK
        style.write(draw, (count_right, middle), counts[number], size, colour, "rm")
        share = f"{100 * row.kept / row.predicted:.0f} %" if row.predicted else "-"
        style.write(draw, (share_right, middle), share, size, style.INK, "rm")
        style.write(draw, (threshold_right, middle), f"{row.threshold:.3f}", size, style.FAINT, "rm")
    return picture


def _counts(row: Row) -> str:
    given = f" + {row.rescued:,} rescued" if row.rescued else ""
    return f"{row.kept:,} of {row.predicted:,}{given}"
