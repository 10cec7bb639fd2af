"""The demo's picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kd3.demo.picture import Bar, ClassRow, draw

LARGEST_FILE = 600_000  # bytes, of noise, which nothing can pack; real thumbnails take 300 KB


def rows(classes: int, examples: int, side: int = 32) -> list[ClassRow]:
    images = np.random.default_rng(0).integers(0, 256, (examples, 3, side, side), dtype=np.uint8)
    return [ClassRow(str(name), images[:0], images, examples) for name in range(classes)]


def test_the_picture_is_a_png_that_fits_a_page(tmp_path: Path) -> None:
    path = tmp_path / "new" / "demo.png"
    bars = [Bar("teacher", 99.0), Bar("KD3", 93.0, emphasis=True)]
    draw(path, title="Title", subtitle="and more", rows=rows(10, 14), bars=bars)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert 1300 < image.width < 1500
        assert 900 < image.height < 1050
    assert path.stat().st_size < LARGEST_FILE


@pytest.mark.parametrize("side", [32, 48])
def test_thumbnails_lie_where_the_rows_are(tmp_path: Path, side: int) -> None:
    red = np.zeros((1, 3, side, side), dtype=np.uint8)
    red[:, 0] = 252
    row = ClassRow("0", red, red, 1)
    draw(tmp_path / "p.png", title="", subtitle="", rows=[row], bars=[])
    pixels = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))
    assert (pixels == (252, 0, 0)).all(axis=2).sum() == 2 * 64 * 64


def test_classes_without_images_leave_their_place_empty(tmp_path: Path) -> None:
    draw(tmp_path / "p.png", title="", subtitle="", rows=rows(3, 0), bars=[Bar("KD3", 0.0)])
    assert (tmp_path / "p.png").stat().st_size > 0
