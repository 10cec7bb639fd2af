"""Scaling of images to the pool's size, mostly in the JPEG decoder."""

from __future__ import annotations

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
