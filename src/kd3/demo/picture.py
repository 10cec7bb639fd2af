"""The demo's result and its one picture: the lost images, the web images of each class, and the accuracies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from kd3.demo.crawl import read_truth

if TYPE_CHECKING:
    from matplotlib.figure import Figure


LOST_SHOWN, WEB_SHOWN = 4, 14  # images of each class

# All measures are in pixels of the finished picture, from its upper left corner.
_DPI = 100
_TILE, _GAP = 64, 3  # twice the side of a 32-pixel image: nothing is smeared
_PITCH = _TILE + _GAP
_MARGIN = 28
_NAME_COLUMN, _COUNT_COLUMN = 56, 70
_LOST_LEFT = _MARGIN + _NAME_COLUMN
_WEB_LEFT = _LOST_LEFT + LOST_SHOWN * _PITCH + 14 + _COUNT_COLUMN
_WIDTH = _WEB_LEFT + WEB_SHOWN * _PITCH - _GAP + _MARGIN
_ROWS_TOP = 138
_BAR, _BAR_PITCH, _PERCENT_COLUMN = 22, 34, 80

_INK, _FAINT, _PAPER, _EMPTY = "#1d2733", "#6b7785", "#ffffff", "#f1f3f5"
_LOST_COLOUR, _WEB_COLOUR = "#b4481e", "#0b7a6f"
_BAR_COLOURS = {"plain": "#9aa5b1", "accent": _WEB_COLOUR}


@dataclass(frozen=True)
class ClassRow:
    """The images of one class."""

    name: str
    lost: np.ndarray  # uint8 (n, 3, H, W): examples; the first `LOST_SHOWN` are drawn
    web: np.ndarray  # uint8 (n, 3, H, W): examples; the first `WEB_SHOWN` are drawn
    web_count: int  # of all web images predicted as this class


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
    y = _ROWS_TOP - 24
    web = sum(row.web_count for row in rows)
    page.text(_LOST_LEFT, y, "the lost images", size=13.5, weight="bold", color=_LOST_COLOUR)
    page.text(_WEB_LEFT, y, f"web images taken for this class: {web:,}", size=13.5, weight="bold", color=_WEB_COLOUR)


def _draw_row(page: _Page, top: int, row: ClassRow) -> None:
    middle = top + _TILE / 2
    page.text(_MARGIN, middle, row.name, size=20 if len(row.name) <= 2 else 11, weight="bold")
    page.text(_WEB_LEFT - 12, middle, f"{row.web_count:,}", size=12, ha="right", color=_WEB_COLOUR)
    for left, images, shown in ((_LOST_LEFT, row.lost, LOST_SHOWN), (_WEB_LEFT, row.web, WEB_SHOWN)):
        page.box(left, top, shown * _PITCH - _GAP, _TILE, _EMPTY)
        for place, image in enumerate(images[:shown]):
            page.pixels(left + place * _PITCH, top, _tile(image))


def _tile(image: np.ndarray) -> np.ndarray:
    """Return an image (3, H, W) as a thumbnail (TILE, TILE, 3)."""
    # The two lowest bits of a thumbnail are invisible; without them the file is a third smaller.
    shown = ImageOps.posterize(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))), 6)
    whole_pixels = _TILE % shown.width == 0 and _TILE % shown.height == 0
    resampling = Image.Resampling.NEAREST if whole_pixels else Image.Resampling.BICUBIC
    return np.asarray(shown.resize((_TILE, _TILE), resampling))


def _draw_bars(page: _Page, top: int, bars: Sequence[Bar]) -> None:
    left = _LOST_LEFT + 60
    full = _WIDTH - _MARGIN - _PERCENT_COLUMN - left  # the length of 100%
    page.text(_MARGIN, top, "accuracy on the put-away test digits", size=13.5, weight="bold")
    for number, bar in enumerate(bars):
        y = top + 24 + number * _BAR_PITCH
        page.text(left - 12, y + _BAR / 2, bar.name, size=12, ha="right")
        page.box(left, y, full, _BAR, _EMPTY)
        colour = _BAR_COLOURS["accent" if bar.emphasis else "plain"]
        page.box(left, y, full * bar.percent / 100, _BAR, colour)
        page.text(left + full + 12, y + _BAR / 2, f"{bar.percent:.1f}%", size=12, weight="bold")


DIGITS = set("0123456789")


def share_of_digits(pool_folder: Path, truth_file: Path) -> float:
    """Return the percentage of the pool's images that show a digit."""
    from kd3.pool import ImagePool

    truth = read_truth(truth_file)
    shows = [truth.get(digest, "") in DIGITS for digest in ImagePool.open(pool_folder).index()["sha256"].to_pylist()]
    return 100 * float(np.mean(shows))


def draw_outcome(path: Path, *, pool_folder: Path, run: Path, lost_test: Path, accuracies: dict[str, float]) -> None:
    """Draw, for each class, lost images and the last round's web images that the student predicts as the class."""
    from kd3.models.student_files import load_student
    from kd3.pool import ImagePool
    from kd3.runtime.compute import resolve
    from kd3.runtime.run_folder import RunFolder
    from kd3.scoring.batches import PoolBatches
    from kd3.scoring.scan import score
    from kd3.training.run_logger import trained_on

    pool = ImagePool.open(pool_folder)
    student = load_student(run)
    learned_from = trained_on(RunFolder(run), pool)
    compute = resolve("cpu", "32")
    logits = score(student, PoolBatches(pool, compute), learned_from, student.normalise, compute)
    predicted = logits.argmax(1).numpy()
    draw_from = np.random.default_rng(0)
    rows = []
    for label, name in enumerate(student.classes):
        places = learned_from[predicted == label]
        web = pool.read(draw_from.permutation(places)[:WEB_SHOWN])
        rows.append(ClassRow(name, _examples(lost_test / name), web, len(places)))
    draw(
        path,
        title="From web images to the lost task",
        subtitle="The student never saw the images on the left. It learned from those on the right.",
        rows=rows,
        bars=[Bar(name, value, emphasis="KD3" in name) for name, value in accuracies.items()],
    )


def _examples(folder: Path) -> np.ndarray:
    """Return the first lost images of a class: (n, 3, H, W) uint8."""
    files = sorted(folder.iterdir())[:LOST_SHOWN]
    return np.stack([np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1) for file in files])
