"""From the bytes of any image to RGB pixels of one size, or the reason why not."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

DEFAULT_MIN_SIDE = 16
DEFAULT_MAX_PIXELS = 100_000_000
WHITE = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """What becomes of an image."""

    image_size: int
    fit: Literal["crop", "squash"] = "crop"
    min_side: int = DEFAULT_MIN_SIDE
    max_pixels: int = DEFAULT_MAX_PIXELS


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

    reason: str
    detail: str = ""


def decode(data: bytes, settings: DecodeSettings) -> Decoded | Rejected:
    """Return an image as RGB uint8 (3, N, N), or why it cannot be.

    EXIF orientation is applied, alpha goes over white, 16 bits are scaled to 8, animations give
    their first frame. "crop" resizes the shorter side to N and takes the centre, "squash" the whole
    image; bicubic with antialiasing; an N x N image keeps its pixels. Limits are checked on the
    header, before pixels are decoded. Whatever a decoder raises becomes a rejection.
    """
    if not data:
        return Rejected("empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _decode(data, settings)
    except UnidentifiedImageError:
        return Rejected("not an image")
    except Image.DecompressionBombError as problem:
        return Rejected("too many pixels", str(problem))
    except MemoryError:
        return Rejected("unreadable", "out of memory")
    except Exception as problem:
        # Decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and more.
        words = f"{type(problem).__name__}: {problem}"
        short = any(sign in words.lower() for sign in ("truncated", "premature", "unexpected end", "not enough"))
        return Rejected("truncated" if short else "unreadable", words[:200])


def _decode(data: bytes, settings: DecodeSettings) -> Decoded | Rejected:
    with Image.open(io.BytesIO(data)) as opened:
        width, height = opened.size
        name = opened.format or ""
        if width * height > settings.max_pixels:
            return Rejected("too many pixels", f"{width} x {height}, more than {settings.max_pixels:,}")
        if min(width, height) < settings.min_side:
            return Rejected("too small", f"{width} x {height}, the shorter side under {settings.min_side}")
        opened.load()
        turned = opened.getexif().get(0x0112, 1) != 1
        image = to_rgb(ImageOps.exif_transpose(opened) if turned else opened)
    width, height = image.size
    pixels = np.ascontiguousarray(np.asarray(_resize(image, settings)).transpose(2, 0, 1))
    return Decoded(
        pixels=pixels,
        sha256=hashlib.sha256(data).digest(),
        digest=pixel_digest(pixels),
        width=width,
        height=height,
        format=name,
    )


def pixel_digest(pixels: np.ndarray) -> bytes:
    """Return the 16 bytes by which a pool knows an image's pixels."""
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest()


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image of any mode as RGB: alpha over white, wide samples scaled to 8 bits."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _narrow(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, (*WHITE, 255))
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")


def _narrow(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and floating-point grey to 8 bits."""
    values = np.asarray(image, dtype=np.float64)
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    if image.mode == "F":
        top = 1.0 if values.max(initial=0) <= 1 else 255.0 if values.max() <= 255 else 65535.0
    else:
        # Mode "I" also carries 8-bit values; "I;16" never does.
        top = 65535.0 if image.mode != "I" or values.max(initial=0) > 255 else 255.0
    return Image.fromarray(np.clip(values / top * 255 + 0.5, 0, 255).astype(np.uint8))


def _resize(image: Image.Image, settings: DecodeSettings) -> Image.Image:
    size = (settings.image_size, settings.image_size)
    if image.size == size:
        return image
    width, height = image.size
    if settings.fit == "squash":
        return image.resize(size, Image.Resampling.BICUBIC)
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    # Cropping first resizes the kept part alone, in one pass.
    return image.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
