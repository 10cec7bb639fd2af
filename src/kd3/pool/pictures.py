"""From the bytes of a picture file to a square of RGB: the one way in which kd3 makes pixels.

Detection of incomplete or damaged files that the decoder silently fills up. A JPEG that was cut and closed by an end
mark (servers and proxies do so) is grey from there on; a PNG whose compressed pixels were overwritten, as by a
download that broke off, ends in noise or black.

Conversion of a picture file's bytes to a square of RGB, the only code in kd3 that makes pixels. Pools, labelled
images, predictions and exports are all made by `read_picture`. Its modules need Pillow and NumPy only: `kd3 export`
puts them into `predict.py`, so that the shipped student sees what it was trained on.
"""

from __future__ import annotations

import importlib
import io
import re
import struct
import zlib
from collections.abc import Callable
from typing import Literal, NamedTuple

from PIL import Image, UnidentifiedImageError

from kd3.pool.rgb import JPEG_FORMATS, MIRRORED_X, MIRRORED_Y, SIDEWAYS, draft, orientation, resized, to_rgb, upright

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


class Plugin(NamedTuple):
    """Plug-in for a kind of pictures."""

    name: str  # of the kind, as Pillow has it once it can read it
    module: str
    register: str  # function of the module that makes it known to Pillow; empty: importing it does
    package: str


PLUGINS = {
    "HEIC": Plugin("HEIF", "pillow_heif", "register_heif_opener", "pillow-heif"),
    "AVIF": Plugin("AVIF", "pillow_avif", "", "pillow-avif-plugin"),  # Pillow from 11.3 on reads it itself, as a rule
    "JPEG XL": Plugin("JXL", "pillow_jxl", "", "pillow-jxl-plugin"),
}
JPEG_XL_STARTS = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
AVIF_BRANDS = {b"avif", b"avis"}
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}


def kind_of_plugin(data: bytes) -> str | None:
    """Return which of `PLUGINS` a file that Pillow does not know needs, None for any other file."""
    kind = _kind(data)
    return None if kind is None or PLUGINS[kind].name in Image.OPEN else kind


def _kind(data: bytes) -> str | None:
    if data.startswith(JPEG_XL_STARTS):
        return "JPEG XL"
    if data[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(data[:4], "big"), 256)
    brands = {data[place : place + 4] for place in (8, *range(16, end, 4))}  # between them stands a version
    if brands & AVIF_BRANDS:
        return "AVIF"
    return "HEIC" if brands & HEIC_BRANDS else None


def plug_in(kind: str) -> bool:
    """Make Pillow read a kind of pictures; return whether that worked."""
    plugin = PLUGINS[kind]
    try:
        found = importlib.import_module(plugin.module)
        if plugin.register:
            getattr(found, plugin.register)()
    except Exception:  # missing, or built for another Pillow
        return False
    return True


def what_to_install(kind: str) -> str:
    """Return the installation advice for such pictures."""
    return f"{kind}, which Pillow reads with a plug-in: pip install {PLUGINS[kind].package}"


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
