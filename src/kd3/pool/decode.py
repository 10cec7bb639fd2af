"""From the bytes of any image to RGB pixels of one size, or the reason why not."""

from __future__ import annotations

import hashlib
import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from kd3.pool.plain_jpeg import decode_frame, ordinary_frame
from kd3.pool.reasons import Reason
from kd3.pool.scaling import Fit, draft, draft_scale, resized
from kd3.pool.to_rgb import MIRRORED_X, MIRRORED_Y, SIDEWAYS, orientation, to_rgb, upright

RUNS_PROGRAMS = ("EPS",)  # Pillow would hand these to Ghostscript
DEFAULT_MIN_SIDE = 16
DEFAULT_MAX_PIXELS = 100_000_000
DEFAULT_MAX_SECONDS = 60.0
SIGNS_OF_TRUNCATION = ("truncated", "premature", "unexpected end", "not enough")


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """What becomes of an image."""

    image_size: int
    fit: Fit = "crop"
    min_side: int = DEFAULT_MIN_SIDE
    max_pixels: int = DEFAULT_MAX_PIXELS
    max_seconds: float = DEFAULT_MAX_SECONDS  # of one file, where it is decoded in a process of its own


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
    """Return an image as RGB uint8 (3, N, N), or why it cannot be.

    EXIF orientation is applied, alpha goes over white, 16 bits are scaled to 8, animations give
    their first frame. "crop" resizes the shorter side to N and takes the centre, "squash" the whole
    image; bicubic with antialiasing; a part that is N x N already keeps its pixels; of a far larger JPEG
    only as much is decoded as the size needs. Limits are checked on the header, before pixels are
    decoded. Whatever a decoder raises becomes a rejection.
    """
    with _pillow_with_our_limit(settings.max_pixels):
        return decode_without_limits(data, settings)


def decode_without_limits(data: bytes, settings: DecodeSettings) -> Decoded | Rejected:
    """`decode` for a process in which `lift_limits_for_good` was called, without its cost per image."""
    if not data:
        return Rejected("empty")
    try:
        return _decode(data, settings)
    except UnidentifiedImageError:
        return Rejected("not an image")
    except Image.DecompressionBombError as problem:
        size = _refused_size(problem)
        return (size and _limit_passed(*size, settings)) or Rejected("too many pixels", str(problem))
    except Exception as problem:
        # Decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, MemoryError and more.
        words = f"{type(problem).__name__}: {problem}"
        short = _webp_is_cut(data) or any(sign in words.lower() for sign in SIGNS_OF_TRUNCATION)
        return Rejected("truncated" if short else "unreadable", words[:200])


def _decode(data: bytes, settings: DecodeSettings) -> Decoded | Rejected:
    return _decode_plain_jpeg(data, settings) or _decode_any(data, settings)


def _decode_plain_jpeg(data: bytes, settings: DecodeSettings) -> Decoded | None:
    frame = ordinary_frame(data)
    if frame is None or _limit_passed(frame.width, frame.height, settings):
        return None
    size = (frame.width, frame.height)
    scale = draft_scale(size, settings.image_size)
    image = decode_frame(data, frame, scale)
    if image is None:
        return None
    image = resized(to_rgb(image), settings.image_size, settings.fit, scale=scale, size=size)
    return _decoded(data, image, size, "JPEG")


def _decode_any(data: bytes, settings: DecodeSettings) -> Decoded | Rejected:
    with Image.open(io.BytesIO(data)) as opened:
        width, height = opened.size
        name = opened.format or ""
        if name in RUNS_PROGRAMS:
            return Rejected("not an image", f"{name} is a program for a page, which kd3 does not run")
        refusal = _limit_passed(width, height, settings)
        if refusal:
            return refusal
        scale = draft(opened, settings.image_size)
        opened.load()
        turn = orientation(opened)  # after loading, by which Pillow may have turned it
        image = upright(to_rgb(opened), turn)
    if scale == 1:
        width, height = image.size
    elif turn in SIDEWAYS:
        width, height = height, width
    size, mirrored = (width, height), (turn in MIRRORED_X, turn in MIRRORED_Y)
    image = resized(image, settings.image_size, settings.fit, scale=scale, size=size, mirrored=mirrored)
    return _decoded(data, image, size, name)


def _refused_size(problem: Image.DecompressionBombError) -> tuple[int, int] | None:
    """Return the size that Pillow refused: of the whole, or of an image inside the file, which its header hides."""
    at = problem.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    # Its message tells the product only; its check is a function of the size.
    size = None if at is None else at.tb_frame.f_locals.get("size")
    return size if isinstance(size, tuple) and len(size) == 2 else None


def _limit_passed(width: int, height: int, settings: DecodeSettings) -> Rejected | None:
    if width * height > settings.max_pixels:
        return Rejected("too many pixels", f"{width} x {height}, more than {settings.max_pixels:,}")
    if min(width, height) < settings.min_side:
        return Rejected("too small", f"{width} x {height}, the shorter side under {settings.min_side}")
    return None


def _decoded(data: bytes, image: Image.Image, size: tuple[int, int], name: str) -> Decoded:
    pixels = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
    return Decoded(
        pixels=pixels,
        sha256=hashlib.sha256(data).digest(),
        digest=pixel_digest(pixels),
        width=size[0],
        height=size[1],
        format=name,
    )


def _webp_is_cut(data: bytes) -> bool:
    # Its decoder does not say why it gave up; the header says how long the file should be.
    return data[:4] == b"RIFF" and len(data) < 8 + int.from_bytes(data[4:8], "little")


def pixel_digest(pixels: np.ndarray) -> bytes:
    """Return the 16 bytes by which a pool knows an image's pixels."""
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest()


_limits = threading.Lock()
_limits_users = 0
_limits_before: int | None = None


@contextmanager
def _pillow_with_our_limit(max_pixels: int) -> Iterator[None]:
    """Switch off Pillow's warnings and put our limit of pixels for its own; its setting comes back after."""
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
    # It warns above its limit and refuses above twice of it; ours is looked at first wherever a header tells the size.
    return (max_pixels + 1) // 2


def lift_limits_for_good(max_pixels: int) -> None:
    """Switch off Pillow's warnings and put our limit for its own, in a process that does nothing but decode."""
    Image.MAX_IMAGE_PIXELS = _pillows(max_pixels)
    warnings.simplefilter("ignore")
