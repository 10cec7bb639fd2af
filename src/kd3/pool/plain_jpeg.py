"""Fast decoding of ordinary JPEGs without opening them as files, which takes a third of the time for small images.

Ordinary is one of grey or colour whose header holds nothing that concerns the pixels: no EXIF data (which may
turn it), no second picture, no CMYK. The decoder is Pillow's own, with the same arguments, so the pixels are
the same; all others and failures are left to `Image.open`, which reports the error.
"""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image

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
