"""From the bytes of any image to RGB pixels of one size, or to a reason for refusal.

Fast decoding of ordinary JPEGs without opening them as files, which takes a third of the time for small images.
Ordinary is one of grey or colour whose header holds nothing that concerns the pixels: no EXIF data (which may turn
it), no second picture, no CMYK. The decoder is Pillow's own, with the same arguments, so the pixels are the same; all
others and failures are left to `Image.open`, which reports the error.
"""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from kd3.config.records import Fit, Preparation
from kd3.pool.pictures import MAX_PIXELS, Picture, UnusablePicture, check_limits, ends_as_if_cut, read_picture, scans
from kd3.pool.rgb import draft_scale, resized, to_rgb
from kd3.runtime.files import what_it_is
from kd3.sources.record import Reason

START = b"\xff\xd8\xff"
SCAN, BASELINE, PROGRESSIVE = 0xDA, 0xC0, 0xC2
# Quantisation and Huffman tables, JFIF's own segment, the restart interval, a comment.
HARMLESS = frozenset((0xDB, 0xC4, 0xE0, 0xDD, 0xFE))
MODES = {1: "L", 3: "RGB"}


class Frame(NamedTuple):
    """Header of an ordinary JPEG."""

    width: int
    height: int
    mode: str
    has_one_scan: bool  # which has everything: none can be missing


def ordinary_frame(data: bytes) -> Frame | None:
    """Return the size and mode of an ordinary JPEG, None for anything else."""
    if not data.startswith(START):
        return None
    frame: Frame | None = None
    place = 2
    while place + 10 < len(data) and data[place] == 0xFF:
        kind = data[place + 1]
        if kind == SCAN:
            return frame and frame._replace(has_one_scan=frame.has_one_scan and data[place + 4] == len(frame.mode))
        if kind in (BASELINE, PROGRESSIVE):
            mode = MODES.get(data[place + 9])
            if frame is not None or mode is None or data[place + 4] != 8:
                return None
            width, height = data[place + 7] << 8 | data[place + 8], data[place + 5] << 8 | data[place + 6]
            frame = Frame(width, height, mode, kind == BASELINE)
        elif kind not in HARMLESS:
            return None
        place += 2 + (data[place + 2] << 8 | data[place + 3])
    return None


def decode_frame(data: bytes, frame: Frame, scale: int) -> Image.Image | None:
    """Return the image at 1/`scale` of its size (1, 2, 4 or 8), None if it cannot be decoded completely."""
    size = (-(-frame.width // scale), -(-frame.height // scale))
    try:
        return Image.frombytes(frame.mode, size, data, "jpeg", frame.mode, "", scale, 0)
    except Exception:  # decoders raise many kinds of errors
        return None


DEFAULT_MIN_SIDE = 16
DEFAULT_MAX_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """Treatment of an image."""

    image_size: int
    fit: Fit = "crop"
    min_side: int = DEFAULT_MIN_SIDE
    max_pixels: int = MAX_PIXELS
    max_seconds: float = DEFAULT_MAX_SECONDS  # for one file, in a worker process

    @classmethod
    def to_see(cls, preparation: Preparation) -> DecodeSettings:
        """Return the settings for evaluation and prediction, which accept pictures of any size."""
        return cls(preparation.size, preparation.fit, min_side=1)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A usable image."""

    pixels: np.ndarray  # (3, N, N) uint8, RGB
    sha256: bytes  # of the file
    digest: bytes  # of the pixels, 16 bytes
    width: int  # of the file's image, upright
    height: int
    format: str  # Pillow's name


@dataclass(frozen=True, slots=True)
class Rejected:
    """A file that cannot be used: one of a few reasons, and a detail for people."""

    reason: Reason
    detail: str = ""


def decode(data: bytes, settings: DecodeSettings) -> Decoded | Rejected:
    """Decode an image to RGB uint8 (3, N, N) as `read_picture` does, or return a rejection.

    Any exception of a decoder becomes a rejection.
    """
    with _pillow_with_our_limit(settings.max_pixels):
        return decode_without_limits(data, settings)


def decode_without_limits(data: bytes, settings: DecodeSettings) -> Decoded | Rejected:
    """`decode` for a process in which `lift_limits_for_good` was called, without its cost per image."""
    try:
        picture = _plain_jpeg(data, settings) or read_picture(
            data,
            size=settings.image_size,
            fit=settings.fit,
            min_side=settings.min_side,
            max_pixels=settings.max_pixels,
        )
    except UnusablePicture as problem:
        is_other = problem.reason == "not an image" and not problem.detail
        return Rejected(problem.reason, what_it_is(data) if is_other else problem.detail)
    except MemoryError:
        return Rejected("unreadable", "MemoryError: there is no room to resize it")
    return _decoded(data, picture)


def _plain_jpeg(data: bytes, settings: DecodeSettings) -> Picture | None:
    """Decode an ordinary JPEG like `read_picture`, but faster; None for others and doubtful ones."""
    frame = ordinary_frame(data)
    if frame is None:
        return None
    check_limits(frame.width, frame.height, settings.min_side, settings.max_pixels)
    size = (frame.width, frame.height)
    scale = draft_scale(size, settings.image_size)
    image = decode_frame(data, frame, scale)
    if image is None or ends_as_if_cut(image) or (not frame.has_one_scan and scans(data)[0]):
        return None
    return Picture(resized(to_rgb(image), settings.image_size, settings.fit, scale=scale, size=size), *size, "JPEG")


def _decoded(data: bytes, picture: Picture) -> Decoded:
    pixels = np.ascontiguousarray(np.asarray(picture.image).transpose(2, 0, 1))
    return Decoded(
        pixels=pixels,
        sha256=hashlib.sha256(data).digest(),
        digest=pixel_digest(pixels),
        width=picture.width,
        height=picture.height,
        format=picture.file_format,
    )


def pixel_digest(pixels: np.ndarray) -> bytes:
    """Return the 16 bytes that identify an image's pixels in a pool."""
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest()


_limits = threading.Lock()
_limits_users = 0
_limits_before: int | None = None


@contextmanager
def _pillow_with_our_limit(max_pixels: int) -> Iterator[None]:
    """Switch off Pillow's warnings and replace its limit of pixels by ours, within the context."""
    global _limits_users, _limits_before
    with _limits:
        if _limits_users == 0:
            _limits_before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, _pillows(max_pixels)
        _limits_users += 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        with _limits:
            _limits_users -= 1
            if _limits_users == 0:
                Image.MAX_IMAGE_PIXELS = _limits_before


def _pillows(max_pixels: int) -> int:
    # Pillow warns above its limit and refuses above twice the limit; ours is checked first if a header gives the size.
    return (max_pixels + 1) // 2


def lift_limits_for_good(max_pixels: int) -> None:
    """Switch off Pillow's warnings and replace its limit by ours, in a process that only decodes."""
    Image.MAX_IMAGE_PIXELS = _pillows(max_pixels)
    warnings.simplefilter("ignore")
