"""Arrays of images: their shapes, and one image of an array as the bytes of a lossless file."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

LARGEST = 256 << 20  # bytes of an image
CHANNELS = (1, 3, 4)  # grey, RGB, RGB with alpha
FLAT = "data"  # the array of a CIFAR or ImageNet batch: a row holds an image's red, green and blue planes


class NoImages(Exception):
    """The opened data hold no images; the message gives the reason and a remedy."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Layout of an image's bytes in an array: rows of pixels, or one plane per channel."""

    height: int
    width: int
    channels: int  # of CHANNELS
    planes: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        return Layout, (self.height, self.width, self.channels, self.planes)

    @property
    def size(self) -> int:
        """The bytes of an image."""
        return self.height * self.width * self.channels

    def as_file(self, data: bytes) -> bytes:
        """Convert an image's bytes in the array to those of a file: PGM (grey), PPM (RGB), or PNG (with alpha).

        Equal pixels give equal files, from any array.
        """
        if self.planes and self.channels > 1:
            planes = np.frombuffer(data, dtype=np.uint8).reshape(self.channels, self.height, self.width)
            data = planes.transpose(1, 2, 0).tobytes()
        if self.channels == 4:
            return self._as_png(data)
        return b"P%d\n%d %d\n255\n" % (5 if self.channels == 1 else 6, self.width, self.height) + data

    def _as_png(self, data: bytes) -> bytes:
        from PIL import Image

        buffer = io.BytesIO()
        Image.frombytes("RGBA", (self.width, self.height), data).save(buffer, "PNG", compress_level=0)
        return buffer.getvalue()


def images_in(name: str, shape: Sequence[int], dtype: np.dtype[Any], *, fortran: bool = False) -> tuple[int, Layout]:
    """Return the number of images in an array, and their layout.

    Shapes are tried in this order, C being 1, 3 or 4 channels: (N, H, W, C), (N, C, H, W); of three axes
    (H, W, C), one image, then (N, H, W), grey ones; of two, where the array is named "data", (N, 3 * S * S).

    Raises:
        NoImages: the shape is none of these, or the values are not uint8, row by row.
    """
    shape = tuple(shape)
    if dtype.hasobject:
        raise NoImages("its values are Python objects, a pickle, never loaded; save numpy.stack(images) of uint8")
    match shape:
        case (count, height, width, channels) if channels in CHANNELS:
            layout = Layout(height, width, channels)
        case (count, channels, height, width) if channels in CHANNELS:
            layout = Layout(height, width, channels, planes=True)
        case (height, width, channels) if channels in CHANNELS:
            count, layout = 1, Layout(height, width, channels)
        case (count, height, width):
            layout = Layout(height, width, 1)
        case (count, columns) if name == FLAT and columns and columns % 3 == 0 and _is_square(columns // 3):
            side = math.isqrt(columns // 3)
            layout = Layout(side, side, 3, planes=True)
        case _:
            raise NoImages(f"its shape is {shape}, not (N, H, W, 3), (N, 3, H, W) or (N, H, W)")
    if dtype != np.uint8:
        raise NoImages(f"its values are {dtype}, not uint8; {_advice(dtype)}")
    if fortran:
        raise NoImages("it lies in Fortran order; save numpy.ascontiguousarray(array) instead")
    if layout.size > LARGEST:
        raise NoImages(f"its shape is {shape}: one image would have {layout.size:,} bytes")
    if layout.size == 0 or count < 1:
        raise NoImages(f"its shape is {shape}, which is empty")
    return count, layout


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


def _advice(dtype: np.dtype[Any]) -> str:
    if dtype.kind == "f":
        return "of values in [0, 1] save (array * 255).round().astype('uint8')"
    if dtype == np.bool_:
        return "save array.astype('uint8') * 255"
    if dtype.kind in "ui" and dtype.itemsize > 1:
        return "of values up to 255 save array.astype('uint8'), of 16 bits (array // 257).astype('uint8')"
    return "save array.astype('uint8')"
