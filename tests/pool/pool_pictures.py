"""Small pictures and archives of them, for the tests of the pool."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from archives_made import tar_of as tar_of
from archives_made import zip_of as zip_of


def noise(seed: int, width: int = 24, height: int = 24) -> Image.Image:
    """A picture like no other."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    """The bytes of a file of this picture."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def some_files(count: int) -> dict[str, bytes]:
    """Pictures by name, in sorted order."""
    return {f"{seed % 3}/{seed:05d}.png": encoded(noise(seed)) for seed in range(count)}


def folder_of(place: Path, files: dict[str, bytes]) -> Path:
    """Write files into a folder."""
    for name, data in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return place
