"""Count edited copies that `--dedup near` and `--keep-out` find: `python -m benchmarks.near_copies CRAWL [--size 32]`.

CRAWL is anything that kd3 ingests. Each image is edited in each way, both are scaled as a pool's, and the original is
looked for among all. Wrong finds are edited images that are taken for a copy of another original.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from kd3.pool import Decoded, DecodeSettings, list_records
from kd3.pool.decode import decode
from kd3.pool.near_copies import NearCopies, perceptual_hashes, thumbnails

Edit = Callable[[Image.Image], Image.Image]


def saved(image: Image.Image, name: str, **options: int) -> bytes:
    """Return an image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def as_jpeg(quality: int) -> Edit:
    """Return an edit that encodes again."""
    return lambda image: Image.open(io.BytesIO(saved(image, "JPEG", quality=quality))).convert("RGB")


def scaled(factor: float) -> Edit:
    """Return an edit that changes the size."""
    return lambda image: image.resize(
        (round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC
    )


def cropped(part: float) -> Edit:
    """Return an edit that takes this part of the sides off on all four sides."""

    def crop(image: Image.Image) -> Image.Image:
        x, y = round(image.width * part), round(image.height * part)
        return image.crop((x, y, image.width - x, image.height - y))

    return crop


EDITS: dict[str, Edit] = {
    "JPEG at quality 75": as_jpeg(75),
    "JPEG at quality 30": as_jpeg(30),
    "half as large": scaled(0.5),
    "a third as large": scaled(1 / 3),
    "twice as large": scaled(2),
    "brighter by 30%": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "less contrast by 30%": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "in grey": lambda image: image.convert("L").convert("RGB"),
    "blurred by a pixel": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "cropped by 1.6% on each side": cropped(1 / 64),
    "cropped by 3% on each side": cropped(2 / 64),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


def originals(source: str, limit: int) -> Iterator[Image.Image]:
    """Yield a crawl's images that can be read."""
    for record in list_records([source]):
        data = record.location.read()
        if isinstance(decode(data, DecodeSettings(32)), Decoded):
            yield Image.open(io.BytesIO(data)).convert("RGB")
            limit -= 1
        if not limit:
            return


def pool_pixels(images: list[Image.Image], size: int) -> np.ndarray:
    """Return images as a pool holds them: (n, 3, size, size) uint8."""
    decoded = [decode(saved(image, "PNG"), DecodeSettings(size, min_side=1)) for image in images]
    return np.stack([one.pixels for one in decoded if isinstance(one, Decoded)])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("crawl")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--limit", type=int, default=1_250)
    arguments = parser.parse_args()
    images = list(originals(arguments.crawl, arguments.limit))
    known = pool_pixels(images, arguments.size)
    near = NearCopies(lambda places: thumbnails(known[places]))
    near.add(perceptual_hashes(known))
    print(f"n = {len(images):,} images at {arguments.size} pixels\n\n| edit | found | wrong |\n|---|---|---|")
    for name, edit in EDITS.items():
        edited = pool_pixels([edit(image) for image in images], arguments.size)

        def thumbnails_of(places: np.ndarray, edited: np.ndarray = edited) -> np.ndarray:
            return thumbnails(edited[places])

        found = near.find(perceptual_hashes(edited), thumbnails_of)
        right = sum(place == copy.place for place, copy in found.items())
        print(f"| {name} | {100 * right / len(images):.1f}% | {len(found) - right} |", flush=True)


if __name__ == "__main__":
    main()
