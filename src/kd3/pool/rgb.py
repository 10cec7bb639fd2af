"""An opened image as upright RGB pixels of the pool's size."""

from __future__ import annotations

import numpy as np
from PIL import Image

JPEG_FORMATS = ("JPEG", "MPO")  # MPO: some cameras' JPEG with a second picture
DRAFT_SCALES = (8, 4, 2)  # the decoder can leave out these many pixels a side: it inverts a smaller transform
DRAFT_MARGIN = 2  # a draft keeps this many pixels for each that is wanted (Pillow's `reducing_gap` advises 2 to 3)


def draft_scale(size: tuple[int, int], image_size: int) -> int:
    """Return the 1, 2, 4 or 8 by which a JPEG's decoder may divide its size: the shorter side keeps 2 N pixels.

    The following resize then dominates: the result equals that of a full decode up to rounding.
    """
    times = min(size) // (DRAFT_MARGIN * image_size)
    return 1 if times < DRAFT_SCALES[-1] else next(scale for scale in DRAFT_SCALES if times >= scale)


def draft(opened: Image.Image, image_size: int) -> int:
    """Make a far too large JPEG decode at a smaller size; call before loading. Return the divisor."""
    scale = draft_scale(opened.size, image_size) if opened.format in JPEG_FORMATS else 1
    if scale == 1 or opened.draft(None, (opened.width // scale, opened.height // scale)) is None:
        return 1
    return scale


def resized(
    image: Image.Image,
    image_size: int,
    fit: str,
    *,
    scale: int = 1,
    size: tuple[int, int] | None = None,
    mirrored: tuple[bool, bool] = (False, False),
) -> Image.Image:
    """Return an image as N x N: "crop" takes the centre square, "squash" all of it.

    Bicubic with antialiasing; what is N x N already keeps its pixels. Of a draft at 1/`scale`, `size` is
    the true size. A draft's last column and row stand for pixels beyond the edge where `scale` does
    not divide the size; they come first along an axis that is `mirrored` since.
    """
    wanted = (image_size, image_size)
    if image.size == wanted:
        return image
    width, height = size or image.size
    if fit == "squash":
        left, top, right, bottom = 0, 0, width, height
    else:
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2  # whole pixels: a mere crop must not blur
        right, bottom = left + side, top + side
    beyond_x = image.width * scale - width if mirrored[0] else 0
    beyond_y = image.height * scale - height if mirrored[1] else 0
    box = (
        (left + beyond_x) / scale,
        (top + beyond_y) / scale,
        (right + beyond_x) / scale,
        (bottom + beyond_y) / scale,
    )
    return image.resize(wanted, Image.Resampling.BICUBIC, box=box)


WHITE = (255, 255, 255)
ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap width and height
MIRRORED_X = (2, 3, 6, 7)  # orientations after which the file's last column or row is the first column
MIRRORED_Y = (3, 4, 7, 8)  # ... the first row
PADDED = ("BMP", "DIB", "TGA")  # kinds of which many writers leave the alpha at 0, and which viewers show all the same
SIXTEEN_BITS = ("PNG", "PPM")  # their wide samples are of 16 bits, however Pillow holds them


def orientation(opened: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; damaged EXIF data say 1, upright."""
    try:
        value = opened.getexif().get(ORIENTATION, 1)
        return value if value in _TURNS else 1
    except Exception:
        # struct.error, SyntaxError, ValueError ...: the pixels are good all the same.
        return 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Return an image turned as its EXIF orientation says."""
    return image if orientation == 1 else image.transpose(_TURNS[orientation])


def to_rgb(image: Image.Image, file_format: str = "") -> Image.Image:
    """Return an image of any mode as RGB: alpha over white, wide samples scaled to 8 bits.

    The meaning of the samples depends on `file_format`, Pillow's name of the format.
    """
    has_alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    if image.mode == "RGB" and not has_alpha:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _narrow(image, file_format).convert("RGB")
    if has_alpha and not (file_format in PADDED and _is_padding(image)):
        layered = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        canvas = Image.new("RGB", layered.size, WHITE)
        canvas.paste(layered, mask=layered.getchannel("A"))
        return canvas
    return image.convert("RGB")


def _is_padding(image: Image.Image) -> bool:
    """Return whether an alpha is 0 everywhere: four bytes a pixel of which the fourth was never used."""
    return "A" in image.getbands() and image.getchannel("A").getextrema() == (0, 0)


def _narrow(image: Image.Image, file_format: str) -> Image.Image:
    """Scale 16-bit, 32-bit and floating-point grey to 8 bits.

    Integers of 16 bits have their range from the file. Wider ones and floats carry none of their own: it is the
    narrowest of those that are in use that holds them.
    """
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    floats = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    ranges: tuple[float, ...] = (1.0, 255.0, 65535.0)
    if image.mode != "F":
        ranges = ranges[2:] if file_format in SIXTEEN_BITS else ranges[1:]
    largest = float(floats.max(initial=0))
    top = next((top for top in ranges if largest <= top), largest if image.mode == "F" else 2.0**31 - 1)
    return Image.fromarray(np.clip(floats / top * 255 + 0.5, 0, 255).astype(np.uint8))
