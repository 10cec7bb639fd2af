"""Type, colours and measures of the pictures."""

from __future__ import annotations

from functools import lru_cache

from PIL import ImageDraw, ImageFont

INK, FAINT, PAPER, EMPTY = "#1d2733", "#6b7785", "#ffffff", "#e6eaee"
KEPT, REFUSED, MARKED = "#0b7a6f", "#b4481e", "#c77700"
MARGIN = 24
TITLE_SIZE, TEXT_SIZE, SMALL_SIZE = 20, 13, 12

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Pillow brings a fine typeface for English; for other scripts, a system typeface is needed.
_WIDER = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "msyh.ttc")
_NOWHERE = "\uffff"  # a character that no typeface has


@lru_cache(maxsize=256)
def font_for(text: str, size: int) -> Font:
    """Return a typeface that has the characters of a text, or most of them if none has all; size in pixels."""
    fonts: list[Font] = [ImageFont.load_default(size)]
    for name in _WIDER if not text.isascii() else ():
        try:
            fonts.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return min(fonts, key=lambda font: _missing(font, text))


def _missing(font: Font, text: str) -> int:
    if text.isascii():
        return 0
    nothing = bytes(font.getmask(_NOWHERE))
    return sum(bytes(font.getmask(c)) == nothing for c in text if not c.isspace())


def write(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, colour: str, anchor: str) -> None:
    """Write one line, at a place given by a Pillow `anchor`."""
    draw.text(at, text, font=font_for(text, size), fill=colour, anchor=anchor)


def width_of(text: str, size: int) -> float:
    """Return the width of a line in pixels."""
    return font_for(text, size).getlength(text)


def shortened(text: str, size: int, width: float) -> str:
    """Return a text on one line, its end replaced by dots if it is wider than `width` pixels."""
    text = " ".join(text.split())
    if width_of(text, size) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if width_of(text[:middle] + "...", size) <= width else (low, middle - 1)
    return text[:low].rstrip() + "..."
