"""Files of a real crawl besides plain pictures: broken ones, and unusual but good ones."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from kd3.demo.pictures import make_digit

_ORIENTATION_TAG = 0x0112
_TURNED_LEFT = 6  # EXIF: the viewer must turn the stored pixels a quarter to the right
_SIDE = 72  # large enough for each file below to need more than one network packet
_ERROR_PAGE = "<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>Not Found</body></html>\n"
_NOTE = "Pictures found by searching for digits, letters and signs.\n"


@dataclass(frozen=True)
class OddFile:
    """A file's name, bytes and content; None if no picture can be read from it."""

    name: str
    content: bytes
    truth: str | None


def odd_files(draw: random.Random) -> Iterator[OddFile]:
    """Give one file of each odd kind."""
    whole = _jpeg(_square(make_digit("5", draw)))
    yield OddFile("cut-short.jpg", whole[: len(whole) // 2], None)
    yield OddFile("not-found.jpg", _ERROR_PAGE.encode(), None)
    yield OddFile("empty.jpg", b"", None)
    yield OddFile("one-pixel.png", _encoded(Image.new("RGB", (1, 1), (200, 30, 30)), "PNG"), None)
    yield OddFile("about.txt", _NOTE.encode(), None)
    yield OddFile("print.jpg", _jpeg(_square(make_digit("8", draw)).convert("CMYK")), "8")
    palette = _square(make_digit("3", draw)).convert("RGB").quantize(16)
    yield OddFile("few-colours.png", _encoded(palette, "PNG"), "3")
    yield OddFile("phone.jpg", _turned_by_exif(_square(make_digit("4", draw))), "4")


def _square(image: Image.Image) -> Image.Image:
    return image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)


def _encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def _jpeg(image: Image.Image) -> bytes:
    return _encoded(image, "JPEG", quality=90)


def _turned_by_exif(image: Image.Image) -> bytes:
    """Return a JPEG whose pixels lie on their side and whose EXIF says so."""
    exif = Image.Exif()
    exif[_ORIENTATION_TAG] = _TURNED_LEFT
    # Stored a quarter to the left, so that following the tag stands it upright again.
    return _encoded(image.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=90, exif=exif)
