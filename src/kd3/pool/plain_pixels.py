"""Pixels without a file format, as the bytes of one: PPM or PGM, which Pillow reads and nothing compresses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kd3.pool.record import read_range


class Layout(NamedTuple):
    """How the samples of one image lie in memory, one byte each."""

    height: int
    width: int
    channels: int  # 1 or 3
    planar: bool  # red, green and blue one after the other

    @property
    def size(self) -> int:
        """Bytes of an image."""
        return self.height * self.width * self.channels

    def as_file(self, samples: bytes) -> bytes:
        """Return the image as a PPM or PGM file. Its hash is of these bytes, since there is no other file."""
        if self.planar and self.channels == 3:
            planes = np.frombuffer(samples, dtype=np.uint8).reshape(3, self.height, self.width)
            samples = planes.transpose(1, 2, 0).tobytes()
        kind = "P6" if self.channels == 3 else "P5"
        return b"%s\n%d %d\n255\n" % (kind.encode(), self.width, self.height) + samples


def layout_of(shape: tuple[int, ...]) -> Layout | None:
    """Return how an array of images (its first axis) keeps each of them, None where it can be none.

    (N, H, W, 3), (N, H, W, 1), (N, 3, H, W), (N, 1, H, W), (N, H, W). Where two would fit, a last axis of 3 or 1
    is the colour; an array (H, W, 3) is no heap of images, and `layout_of` is not asked of it.

    >>> layout_of((10, 32, 32, 3)), layout_of((10, 3, 32, 32)).planar, layout_of((10, 5))
    (Layout(height=32, width=32, channels=3, planar=False), True, None)
    """
    if len(shape) == 3:
        return Layout(shape[1], shape[2], 1, False)
    if len(shape) == 4 and shape[3] in (1, 3):
        return Layout(shape[1], shape[2], shape[3], False)
    if len(shape) == 4 and shape[1] in (1, 3):
        return Layout(shape[2], shape[3], shape[1], True)
    return None


@dataclass(frozen=True, slots=True)
class InArray:
    """An image in a file of plain samples."""

    path: str
    offset: int
    layout: Layout

    def read(self) -> bytes:
        """Return it as a file of its own."""
        return self.layout.as_file(read_range(self.path, self.offset, self.layout.size))
