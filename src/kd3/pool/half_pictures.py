"""Detection of incomplete or damaged files that the decoder silently fills up.

A JPEG that was cut and closed by an end mark (servers and proxies do so) is grey from there on; a PNG whose
compressed pixels were overwritten, as by a download that broke off, ends in noise or black.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable

from PIL import Image

PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_CHECKED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")  # the chunks with the pixels
PNG_WORDS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
# Any marker but those that may stand within the data of a scan.
MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
JPEG_END, JPEG_SCAN = 0xD9, 0xDA
SEQUENTIAL, PROGRESSIVE = (0xC0, 0xC1, 0xC9), (0xC2, 0xCA)
ALL_COEFFICIENTS = (1 << 64) - 1  # of a block
# A decoder's fill for missing blocks: the middle value, inverted in CMYK.
MIDDLE = (127, 128)
OTHER_ENDING = bytes(range(1, 200)) * 2  # decoded as pixels only if some are missing; contains no 0xFF


def png_problem(data: bytes) -> str | None:
    """Return the checksum error of a PNG; None for a sound one and for anything else."""
    if not data.startswith(PNG_START):
        return None
    view, place = memoryview(data), len(PNG_START)
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if end > len(data):
            return None  # truncated; Pillow reports it
        if kind in PNG_CHECKED and zlib.crc32(view[place + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            return f"the checksum of its {kind.decode()} chunk is wrong: bytes are missing or were changed"
        if kind == b"IEND":
            return None
        place = end
    return None


def png_without_words(data: bytes) -> bytes:
    """Return a PNG without texts and colour profile, which change no pixel and may exceed Pillow's limits."""
    kept, place = [data[: len(PNG_START)]], len(PNG_START)
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if kind not in PNG_WORDS:
            kept.append(data[place:end])
        place = end
    return b"".join(kept)


def ends_as_if_cut(image: Image.Image) -> bool:
    """Return whether the last pixel of a decoded JPEG is the decoders' filler for missing data."""
    last = image.getpixel((image.width - 1, image.height - 1))
    return last in MIDDLE if isinstance(last, int) else all(value in MIDDLE for value in last)  # type: ignore[union-attr]


def jpeg_is_cut(data: bytes, image: Image.Image, decoded: Callable[[bytes], Image.Image]) -> bool:
    """Return whether a part of a JPEG is missing despite its end mark.

    `image` is what `decoded` makes of `data`. Other bytes before the end mark do not change a complete picture, since
    its last pixel comes before them; a truncated one decodes them as pixels.
    """
    is_short, place = scans(data)
    if is_short or not ends_as_if_cut(image):
        return is_short
    end = data.find(bytes((0xFF, JPEG_END)), place)
    return end >= 0 and decoded(data[:end] + OTHER_ENDING + data[end:]).tobytes() != image.tobytes()


def scans(data: bytes) -> tuple[bool, int]:
    """Return whether scans of a JPEG are missing, and the start of the last scan's data.

    Each component must have been sent; of a progressive one each coefficient, to its last bit.
    """
    wanted: dict[int, int] = {}  # component -> missing coefficients, a bit each
    is_progressive, place, start_of_data = False, 2, 2
    try:
        while found := MARKER.search(data, place):
            kind, here = data[found.start() + 1], found.end()
            if kind == JPEG_END:
                break
            place = here + (data[here] << 8 | data[here + 1])
            if kind in SEQUENTIAL or kind in PROGRESSIVE:
                is_progressive = kind in PROGRESSIVE
                wanted = {data[here + 8 + 3 * number]: ALL_COEFFICIENTS for number in range(data[here + 7])}
            elif kind == JPEG_SCAN:
                start_of_data, count = place, data[here + 2]
                first, last, bits = data[here + 3 + 2 * count : here + 6 + 2 * count]
                sent = (2 << last) - (1 << first) if is_progressive else ALL_COEFFICIENTS
                is_coarse = is_progressive and bits & 15  # the last bits are to follow
                for component in data[here + 3 : here + 3 + 2 * count : 2]:
                    wanted[component] = wanted[component] | sent if is_coarse else wanted[component] & ~sent
                if not any(wanted.values()):
                    return False, start_of_data
    except (IndexError, KeyError, ValueError):
        return False, start_of_data  # other damage, which the decoder reports
    return any(wanted.values()), start_of_data
