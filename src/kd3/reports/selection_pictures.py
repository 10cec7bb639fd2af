"""Pictures of a selection: kept and refused images of each class, and all classes at a glance."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kd3.pool import ImagePool
from kd3.reports.selection_decisions import BELOW, CONFIDENT, GRIDS, OVERVIEW, REASONS, Decisions
from kd3.runtime import console

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


LONGEST = 100  # bytes of UTF-8; names of 255 are allowed almost everywhere


def file_names(classes: Sequence[str]) -> list[str]:
    """Return a file name for each class, without ending: letters of any script, digits, "-", "_" and ".".

    Names that a file system may take for the same (case, form of an accent) get the class's number.

    >>> file_names(["sea lion", "AC/DC", "ac/dc", "..", "\\u6d77"])
    ['sea_lion', 'AC_DC', 'ac_dc-2', 'class', '海']
    """
    taken: set[str] = set()
    found = []
    for number, name in enumerate(classes):
        safe = _safe(name)
        while safe.casefold() in taken:
            safe = f"{safe}-{number}"
        taken.add(safe.casefold())
        found.append(safe)
    return found


def _safe(name: str) -> str:
    plain = unicodedata.normalize("NFC", name)
    kept = "".join(c if c.isalnum() or c in "-_." else "_" for c in plain).lstrip(".")
    return kept.encode()[:LONGEST].decode("utf-8", "ignore") or "class"


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
class GridShape:
    """Positions on a sheet, in pixels."""

    columns: int
    rows: int
    side: int  # of a tile

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the sheet."""
        width = max(_NARROWEST, self.columns * (self.side + GAP) - GAP)
        height = HEAD + self.rows * (self.side + CAPTION + GAP) - GAP
        return width + 2 * MARGIN, height + MARGIN

    def corner(self, number: int) -> tuple[int, int]:
        """Return the upper left corner of a tile."""
        row, column = divmod(number, self.columns)
        return MARGIN + column * (self.side + GAP), HEAD + row * (self.side + CAPTION + GAP)


def grid_shape(tiles: int, image_size: int, *, at_most: int) -> GridShape:
    """Return the layout for some tiles; sheets for equally many at most are equally wide."""
    if image_size < _ENLARGE_TO:
        side = image_size * max(1, round(_ENLARGE_TO / image_size))
    else:
        side = min(image_size, _LARGEST)
    columns = max(_COLUMNS, math.isqrt(max(at_most, 1) - 1) + 1)
    return GridShape(columns, max(1, -(-tiles // columns)), side)


def draw_sheet(
    title: str, lines: Sequence[str], tiles: Sequence[Tile], *, place: GridShape, colour: str = INK
) -> Image.Image:
    """Return a sheet: a title, two lines at most, and the tiles row by row; RGB.

    Small images are enlarged by a whole factor with hard edges, so pixels stay unchanged.
    """
    sheet = Image.new("RGB", place.size, PAPER)
    draw = ImageDraw.Draw(sheet)
    inner = place.size[0] - 2 * MARGIN
    write(draw, (MARGIN, 40), shortened(title, TITLE_SIZE, inner), TITLE_SIZE, colour, "ls")
    for number, line in enumerate(lines[:2]):
        text = shortened(line, TEXT_SIZE, inner)
        write(draw, (MARGIN, 60 + 18 * number), text, TEXT_SIZE, FAINT, "ls")
    for number, tile in enumerate(tiles):
        _put(sheet, draw, place.corner(number), tile, place.side)
    if not tiles:
        at = (MARGIN, HEAD + place.side // 2)
        write(draw, at, "no images", TEXT_SIZE, FAINT, "lm")
    return sheet


def _put(sheet: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], tile: Tile, side: int) -> None:
    image = Image.fromarray(np.ascontiguousarray(tile.pixels.transpose(1, 2, 0)))
    larger = side < image.width
    image = image.resize((side, side), Image.Resampling.LANCZOS if larger else Image.Resampling.NEAREST)
    left, top = corner
    sheet.paste(image, corner)
    if tile.marked:
        draw.rectangle((left - 3, top - 3, left + side + 2, top + side + 2), outline=MARKED, width=2)
    colour = MARKED if tile.marked else INK
    caption = shortened(tile.caption, SMALL_SIZE, side)
    write(draw, (left + side / 2, top + side + 5), caption, SMALL_SIZE, colour, "mt")


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
    size = TEXT_SIZE
    named = [shortened(row.name, size, _NAME_WIDEST) for row in rows]
    counts = [_counts(row) for row in rows]
    name_width = max(40.0, *(width_of(text, size) for text in [*named, "class"]))
    count_width = max(width_of(text, size) for text in [*counts, "kept of predicted"])
    bars = round(MARGIN + name_width + _SPACE)
    count_right = bars + _BAR_WIDTH + _SPACE + count_width
    share_right, threshold_right = count_right + _SHARE_WIDTH, count_right + _SHARE_WIDTH + _THRESHOLD_WIDTH
    width = round(threshold_right + MARGIN)
    picture = Image.new("RGB", (width, _HEAD + _ROW * len(rows) + MARGIN - 6), PAPER)
    draw = ImageDraw.Draw(picture)

    inner = width - 2 * MARGIN
    head = shortened(title, TITLE_SIZE, inner)
    write(draw, (MARGIN, 40), head, TITLE_SIZE, INK, "ls")
    for number, line in enumerate(lines[:2]):
        at = (MARGIN, 60 + 18 * number)
        write(draw, at, shortened(line, size, inner), size, FAINT, "ls")
    for right, text in ((count_right, "kept of predicted"), (share_right, "share"), (threshold_right, "threshold")):
        write(draw, (right, _HEAD - 10), text, size, FAINT, "rs")
    write(draw, (bars - _SPACE, _HEAD - 10), "class", size, FAINT, "rs")

    longest = max([row.predicted for row in rows] + [1])
    for number, row in enumerate(rows):
        middle = _HEAD + _ROW * number + _ROW // 2
        top = middle - _BAR_HEIGHT // 2
        write(draw, (bars - _SPACE, middle), named[number], size, INK, "rm")
        for count, colour in ((row.predicted, EMPTY), (row.kept, KEPT)):
            if count:
                length = max(1, round(_BAR_WIDTH * count / longest))
                draw.rectangle((bars, top, bars + length - 1, top + _BAR_HEIGHT - 1), fill=colour)
        colour = MARKED if row.rescued else INK
        write(draw, (count_right, middle), counts[number], size, colour, "rm")
        share = f"{100 * row.kept / row.predicted:.0f}%" if row.predicted else "-"
        write(draw, (share_right, middle), share, size, INK, "rm")
        write(draw, (threshold_right, middle), f"{row.threshold:.3f}", size, FAINT, "rm")
    return picture


def _counts(row: Row) -> str:
    given = f" + {row.rescued:,} rescued" if row.rescued else ""
    return f"{row.kept:,} of {row.predicted:,}{given}"


def write_grids(folder: Path, decisions: Decisions, pool: ImagePool, *, images: int, classes: int) -> dict[int, str]:
    """Write `grids/CLASS-kept.png`, `grids/CLASS-refused.png` and `grids/overview.png`.

    Args:
        images: at most, on a grid; 0 draws only the overview.
        classes: at most; those with the most kept images.

    Returns:
        The file name for CLASS, for each class with grids.
    """
    place = folder / GRIDS
    place.mkdir()
    shown = decisions.most_kept(classes) if images else []
    named = file_names(decisions.classes)
    stems = {label: named[label] for label in shown}
    with console.progress("draw grids", 2 * len(shown), "grids") as bar:
        for label, positions in enumerate(decisions.of_classes() if shown else ()):
            if label not in stems:
                continue
            _write_class(place, stems[label], label, positions, decisions, pool, images)
            bar.advance(2)
    _write_overview(place / OVERVIEW, decisions, decisions.most_kept(classes))
    return stems


def ranks_apart(positions: np.ndarray, count: int) -> np.ndarray:
    """Return at most `count` of some ranked positions, at even distances from the first to the last rank."""
    if len(positions) <= count:
        return positions
    chosen: np.ndarray = positions[np.linspace(0, len(positions) - 1, count).round().astype(np.int64)]
    return chosen


def _write_class(
    place: Path, stem: str, label: int, positions: np.ndarray, decisions: Decisions, pool: ImagePool, images: int
) -> None:
    is_kept = decisions.reason[positions] != BELOW
    kept, refused = positions[is_kept], positions[~is_kept]
    given = decisions.rescued.get(label, kept[:0])
    given = given[~np.isin(given, kept)]
    name, threshold = decisions.classes[label], f"threshold {decisions.thresholds[label]:.3f}"
    of = f"of {len(positions):,} predicted, {threshold}"
    for what, colour, chosen, facts in (
        ("kept", KEPT, np.concatenate([kept, given]), f"{len(kept):,} kept {of}"),
        ("refused", REFUSED, refused, f"{len(refused):,} refused {of}"),
    ):
        if what == "kept" and len(given):
            facts += f"; {len(given):,} rescued for it, predicted as others (at the end)"
        seen = ranks_apart(chosen, images)
        tiles = [_tile(image, at, label, decisions) for image, at in zip(pool.read(seen), seen.tolist(), strict=True)]
        lines = [facts, _about(len(seen), len(chosen), any(tile.marked for tile in tiles))]
        if what == "kept" and not len(kept) and len(given):
            lines[1] = "the teacher's likeliest first, each with the class that it is predicted as"
        here = grid_shape(len(tiles), pool.image_size, at_most=images)
        draw_sheet(f"{name}: {what}", lines, tiles, place=here, colour=colour).save(place / f"{stem}-{what}.png")


def _tile(image: np.ndarray, at: int, label: int, decisions: Decisions) -> Tile:
    confidence, predicted = float(decisions.confidence[at]), int(decisions.label[at])
    if predicted != label:
        return Tile(image, f"{confidence:.2f} {decisions.classes[predicted]}", marked=True)
    return Tile(image, f"{confidence:.3f}", marked=decisions.reason[at] > CONFIDENT)


def _about(shown: int, of: int, has_marked: bool) -> str:
    if not of:
        return ""
    how_many = "all" if shown == of else f"{shown:,} of {of:,} at even ranks"
    marked = "; in orange what the fallback kept" if has_marked else ""
    return f"{how_many} by confidence, from the highest to the lowest{marked}"


def _write_overview(path: Path, decisions: Decisions, shown: list[int]) -> None:
    total = len(decisions.classes)
    rows = [
        Row(
            decisions.classes[label],
            int(decisions.predicted[label]),
            int(decisions.kept[label]),
            float(decisions.thresholds[label]),
            rescued=len(decisions.rescued.get(label, ())),
        )
        for label in shown
    ]
    kept = decisions.images - decisions.by_reason[REASONS[BELOW]]
    facts = f"{kept:,} of {decisions.images:,} images kept ({100 * kept / decisions.images:.0f}%)"
    which = f"{total:,} classes" if len(shown) == total else f"the {len(shown):,} of {total:,} classes with most kept"
    lines = [f"{facts}; {which}", "bar: images predicted as the class; the filled part is kept"]
    draw_overview("What the selection keeps", lines, rows).save(path)
