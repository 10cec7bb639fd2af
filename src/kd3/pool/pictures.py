"""Conversion of a picture file's bytes to a square of RGB, the only code in kd3 that makes pixels.

Pools, labelled images, predictions and exports are all made by `read_picture`. Its modules need Pillow and NumPy only:
`kd3 export` puts them into `predict.py`, so that the shipped student sees what it was trained on.
"""

from __future__ import annotations

import io
from typing import Literal, NamedTuple

from PIL import Image, UnidentifiedImageError

from kd3.pool.half_pictures import PNG_START, jpeg_is_cut, png_problem, png_without_words
from kd3.pool.plugins import kind_of_plugin, plug_in, what_to_install
from kd3.pool.scaling import JPEG_FORMATS, draft, resized
from kd3.pool.to_rgb import MIRRORED_X, MIRRORED_Y, SIDEWAYS, orientation, to_rgb, upright

RUNS_PROGRAMS = ("EPS",)  # Pillow would hand these to Ghostscript
MAX_PIXELS = 100_000_000
SIGNS_OF_TRUNCATION = ("truncated", "premature", "unexpected end", "not enough")

Problem = Literal[
    "empty", "not an image", "needs a plug-in", "truncated", "too small", "too many pixels", "unreadable"
]  # fmt: skip


class Picture(NamedTuple):
    """A picture prepared for a network, and facts about its file."""

    image: Image.Image  # RGB, size x size
    width: int  # of the file's picture, upright
    height: int
    file_format: str  # Pillow's name


class UnusablePicture(Exception):
    """A file that gives no picture: one of a few reasons, and a detail for people."""

    def __init__(self, reason: Problem, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason: Problem = reason
        self.detail = detail


def read_picture(data: bytes, *, size: int, fit: str, min_side: int = 1, max_pixels: int = MAX_PIXELS) -> Picture:
    """Return the picture in a file as a square of RGB.

    EXIF orientation is applied, alpha goes over white, 16 bits are scaled to 8, animations give their first frame.
    "crop" resizes the shorter side to `size` and takes the centre, "squash" the whole picture; bicubic with
    antialiasing; a part that has the size already keeps its pixels; of a far larger JPEG only as much is decoded as
    the size needs. Limits are checked on the header, before pixels are decoded.

    Raises:
        UnusablePicture: whatever is wrong with the file, and whatever a decoder raises.
    """
    if not data:
        raise UnusablePicture("empty")
    try:
        return _read(data, size, fit, min_side, max_pixels)
    except UnusablePicture:
        raise
    except UnidentifiedImageError:
        kind = kind_of_plugin(data)
        if kind is None:
            raise UnusablePicture("not an image") from None
        raise UnusablePicture("needs a plug-in", what_to_install(kind)) from None
    except Image.DecompressionBombError as problem:
        if (refused := _refused_size(problem)) is not None:
            check_limits(*refused, min_side, max_pixels)
        raise UnusablePicture("too many pixels", str(problem)) from None
    except Exception as problem:
        # Decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, MemoryError and more.
        words = f"{type(problem).__name__}: {problem}"
        short = _webp_is_cut(data) or any(sign in words.lower() for sign in SIGNS_OF_TRUNCATION)
        raise UnusablePicture("truncated" if short else "unreadable", words[:200]) from None


def check_limits(width: int, height: int, min_side: int, max_pixels: int) -> None:
    """Refuse a picture that is too large or too small.

    Raises:
        UnusablePicture: it is too large or too small.
    """
    if width * height > max_pixels:
        raise UnusablePicture("too many pixels", f"{width} x {height}, more than {max_pixels:,}")
    if min(width, height) < min_side:
        raise UnusablePicture("too small", f"{width} x {height}, the shorter side under {min_side}")


def _read(data: bytes, size: int, fit: str, min_side: int, max_pixels: int) -> Picture:
    try:
        return _read_file(data, size, fit, min_side, max_pixels)
    except ValueError:
        if not data.startswith(PNG_START):
            raise
        return _read_file(png_without_words(data), size, fit, min_side, max_pixels)
    except UnidentifiedImageError:
        kind = kind_of_plugin(data)
        if kind is None or not plug_in(kind):
            raise
        return _read_file(data, size, fit, min_side, max_pixels)


def _read_file(data: bytes, size: int, fit: str, min_side: int, max_pixels: int) -> Picture:
    with Image.open(io.BytesIO(data)) as opened:
        width, height = opened.size
        name = opened.format or ""
        if name in RUNS_PROGRAMS:
            raise UnusablePicture("not an image", f"{name} is a program for a page, which kd3 does not run")
        check_limits(width, height, min_side, max_pixels)
        if wrong := png_problem(data):
            raise UnusablePicture("unreadable", wrong)
        scale = draft(opened, size)
        opened.load()
        if name in JPEG_FORMATS and jpeg_is_cut(data, opened, lambda other: _drafted(other, size)):
            raise UnusablePicture("truncated", "a part of it is missing, before its end mark")
        turn = orientation(opened)  # after loading, which may already apply it
        image = upright(to_rgb(opened, name), turn)
    if scale == 1:
        width, height = image.size
    elif turn in SIDEWAYS:
        width, height = height, width
    true_size, mirrored = (width, height), (turn in MIRRORED_X, turn in MIRRORED_Y)
    return Picture(resized(image, size, fit, scale=scale, size=true_size, mirrored=mirrored), width, height, name)


def _drafted(data: bytes, size: int) -> Image.Image:
    opened = Image.open(io.BytesIO(data))
    draft(opened, size)
    opened.load()
    return opened


def _refused_size(problem: Image.DecompressionBombError) -> tuple[int, int] | None:
    """Return the size that Pillow refused: of the whole picture, or of an image hidden inside the file."""
    at = problem.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    # Its message tells the product only; its check is a function of the size.
    size = None if at is None else at.tb_frame.f_locals.get("size")
    return size if isinstance(size, tuple) and len(size) == 2 else None


def _webp_is_cut(data: bytes) -> bool:
    # The decoder gives no reason; the header has the expected length of the file.
    return data[:4] == b"RIFF" and len(data) < 8 + int.from_bytes(data[4:8], "little")
