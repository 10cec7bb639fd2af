"""Parts of a page: charts as inline SVG, images as data URLs in grids, and the templates."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from kd3.version import __version__

WIDTH, HEIGHT = 480, 270
LEFT, RIGHT, TOP, BOTTOM = 54, 12, 12, 40
MOST_POINTS = 240  # of a line: more are indistinguishable
COLOURS = 6  # that the style has: --s0 to --s5


@dataclass(frozen=True)
class Line:
    """A series: points (x, y) in the order of x."""

    name: str
    points: Sequence[tuple[float, float]]


def line_chart(title: str, lines: Sequence[Line], *, x: str, y: str, log: bool = False, zero: bool = False) -> Markup:
    """Return a chart of lines with its legend; empty without data.

    Args:
        x, y: axis labels.
        log: logarithmic y; values that are not positive are left out.
        zero: y begins at 0.
    """
    shown = [Line(line.name, _drawable(line.points, log)) for line in lines]
    points = [point for line in shown for point in line.points]
    if not points:
        return Markup("")
    low, high = min(value for _, value in points), max(value for _, value in points)
    ticks = _log_ticks(low, high) if log else _ticks(0.0 if zero else low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    x_ticks = _ticks(0.0, max(at for at, _ in points), 5)
    across = _scale(0.0, max(x_ticks[-1], max(at for at, _ in points)), LEFT, WIDTH - RIGHT)
    up = (
        _scale(math.log10(low), math.log10(high), HEIGHT - BOTTOM, TOP)
        if log
        else _scale(low, high, HEIGHT - BOTTOM, TOP)
    )

    def place(at: float, value: float) -> str:
        return f"{across(at):.1f},{up(math.log10(value) if log else value):.1f}"

    parts = [_grid(ticks, lambda tick: up(math.log10(tick) if log else tick)), _bottom(x_ticks, across, x)]
    for number, line in enumerate(shown):
        path = " ".join(place(*point) for point in line.points)
        parts.append(Markup('<polyline class="s{}" points="{}"/>').format(number % COLOURS, path))
        if len(line.points) <= 30:
            for point in line.points:
                at, value = place(*point).split(",")
                parts.append(
                    Markup('<circle class="s{}" cx="{}" cy="{}" r="2.6"><title>{}: {}</title></circle>').format(
                        number % COLOURS, at, value, line.name, _number(point[1])
                    )
                )
    return _figure(title, parts, [line.name for line in shown], y)


def scatter(title: str, groups: Sequence[Line], *, x: str, y: str) -> Markup:
    """Return a chart of points without scales: a map's directions have no meaning of their own."""
    points = [point for group in groups for point in group.points]
    if not points:
        return Markup("")
    xs, ys = [at for at, _ in points], [value for _, value in points]
    across = _scale(min(xs), max(xs), LEFT - 30, WIDTH - RIGHT - 4)
    up = _scale(min(ys), max(ys), HEIGHT - BOTTOM + 12, TOP + 4)
    parts = []
    for number, group in enumerate(groups):
        marks = Markup("").join(
            Markup('<circle cx="{:.1f}" cy="{:.1f}" r="2"/>').format(across(at), up(value))
            for at, value in group.points
        )
        parts.append(Markup('<g class="dots s{}">{}</g>').format(number % COLOURS, marks))
    parts.append(
        Markup('<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>').format(WIDTH / 2, HEIGHT - 6, x)
    )
    return _figure(title, parts, [group.name for group in groups], y)


def spark(values: Sequence[float], *, most: float) -> Markup:
    """Return a small line without axes, from 0 to `most`."""
    if len(values) < 2 or most <= 0:
        return Markup("")
    step = 86 / (len(values) - 1)
    path = " ".join(f"{2 + step * place:.1f},{18 - 16 * value / most:.1f}" for place, value in enumerate(values))
    return Markup(
        '<svg class="spark" viewBox="0 0 90 20" aria-hidden="true"><polyline class="s0" points="{}"/></svg>'
    ).format(path)


def interval_bar(value: float, low: float, high: float, *, span: float) -> Markup:
    """Return a small picture of an interval beside 0: a point, and a line from low to high, from -span to span."""
    if span <= 0:
        return Markup("")

    def place(at: float) -> str:
        return f"{60 + 56 * max(-1.0, min(1.0, at / span)):.1f}"

    return Markup(
        '<svg class="bar" viewBox="0 0 120 20" aria-hidden="true"><line class="grid" x1="60" x2="60" y1="1" y2="19"/>'
        '<polyline class="s0" points="{},10 {},10"/><circle class="s0" cx="{}" cy="10" r="3.4"/></svg>'
    ).format(place(low), place(high), place(value))


def _drawable(points: Sequence[tuple[float, float]], log: bool) -> list[tuple[float, float]]:
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y) and (y > 0 or not log)]
    step = max(1, -(-len(finite) // MOST_POINTS))
    kept = finite[::step]
    return kept if not finite or kept[-1] == finite[-1] else [*kept, finite[-1]]


def _figure(title: str, parts: Sequence[Markup], names: Sequence[str], y: str) -> Markup:
    legend = Markup("").join(
        Markup('<li><i class="s{}"></i>{}</li>').format(number % COLOURS, name) for number, name in enumerate(names)
    )
    return Markup(
        '<figure class="chart"><figcaption>{}<span>{}</span></figcaption>'
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg><ul class="legend">{}</ul></figure>'
    ).format(title, y, WIDTH, HEIGHT, f"{title}: {', '.join(names)}", Markup("").join(parts), legend)


def _grid(ticks: Sequence[float], up: object) -> Markup:
    rows = []
    for tick in ticks:
        at = up(tick)  # type: ignore[operator]
        rows.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(LEFT, WIDTH - RIGHT, at, at)
            + Markup('<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                LEFT - 6, at + 4, _number(tick)
            )
        )
    return Markup("").join(rows)


def _bottom(ticks: Sequence[float], across: object, label: str) -> Markup:
    marks = [
        Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
            across(tick),  # type: ignore[operator]
            HEIGHT - BOTTOM + 17,
            _number(tick),
        )
        for tick in ticks
    ]
    name = Markup('<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>').format(
        (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, escape(label)
    )
    return Markup("").join([*marks, name])


def _scale(low: float, high: float, start: float, end: float):  # type: ignore[no-untyped-def]
    width = (high - low) or 1.0
    return lambda value: start + (end - start) * (value - low) / width


def _ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Return round numbers that enclose low and high."""
    if high <= low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * number, 12) for number in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if last - first > 1:
        step = -(-(last - first) // 5)
        return [10.0**power for power in range(first, last + step, step)]
    return [factor * 10.0**first for factor in (1, 2, 5, 10) if factor * 10.0**first <= max(high, 10.0**first) * 5]


def _number(value: float) -> str:
    """Format a number as briefly as possible.

    >>> [_number(value) for value in (200_000, 1_500_000, 0.25, 0.0001, 12)]
    ['200k', '1.5M', '0.25', '0.0001', '12']
    """
    size = abs(value)
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{value / unit:.3g}{name}"
    return (
        f"{value:.3g}"
        if size >= 1e-3 or value == 0
        else f"{value:.0e}".replace("e-0", "e-")
        if size < 1e-4
        else f"{value:.4f}"
    )


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


def rendered(name: str, **values: Any) -> str:
    """Return a page's HTML."""
    here = files("kd3.reports")
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(lambda part: (here / part).read_text(encoding="utf-8")),
    )
    style = Markup((here / "style.css").read_text(encoding="utf-8"))
    return environment.get_template(name).render(version=__version__, style=style, **values)
