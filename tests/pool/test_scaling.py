"""A draft of a large JPEG gives the picture that a full decode gives, faster; nothing else is drafted."""

import io
from unittest import mock

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pool_pictures import encoded, noise

from kd3.config.records import Fit
from kd3.pool import rgb
from kd3.pool.decode import Decoded, DecodeSettings, Rejected, decode
from kd3.pool.rgb import draft

MEAN_DIFFERENCE = 1.5  # of 255; a shift by a quarter of a pixel gives more (see the test of turns)


def photograph(width: int, height: int) -> Image.Image:
    """Edges, gradients and some noise, nothing in it symmetric."""
    image = noise(1, 7, 5).resize((width, height), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    random = np.random.default_rng(2)
    for _ in range(12):
        x, y, radius = (int(random.integers(0, most)) for most in (width, height, height // 3))
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(random.integers(0, 256, 3).tolist()))
    return Image.blend(image, noise(3, width, height), 0.1)


def pixels(data: bytes, settings: DecodeSettings) -> np.ndarray:
    result = decode(data, settings)
    assert isinstance(result, Decoded), result
    return result.pixels.astype(int)


def difference(data: bytes, settings: DecodeSettings) -> float:
    """The mean absolute difference of a draft from the full decode."""
    drafted = pixels(data, settings)
    with mock.patch.object(rgb, "DRAFT_SCALES", (1 << 30,)):
        full = pixels(data, settings)
    assert not np.array_equal(drafted, full), "nothing was drafted"
    return float(abs(drafted - full).mean())


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize("size", [(130, 128), (500, 375), (375, 501), (517, 263), (1031, 777)])
def test_draft_is_close_to_the_full_decode(size: tuple[int, int], fit: Fit) -> None:
    data = encoded(photograph(*size), "JPEG", quality=90)
    assert difference(data, DecodeSettings(32, fit)) < MEAN_DIFFERENCE


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"quality": 40}])
def test_every_kind_of_jpeg_is_drafted_well(options: dict[str, object]) -> None:
    assert difference(encoded(photograph(500, 375), "JPEG", **options), DecodeSettings(32)) < MEAN_DIFFERENCE


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colour_spaces_are_drafted_well(mode: str) -> None:
    data = encoded(photograph(500, 375).convert(mode), "JPEG", quality=90)
    assert difference(data, DecodeSettings(32)) < MEAN_DIFFERENCE


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_draft_is_turned_to_the_same_place(orientation: int, fit: Fit) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    # Neither 8 nor 4 divide these: the draft's last row and column are partly beyond the edge.
    data = encoded(photograph(265, 257), "JPEG", quality=95, exif=exif)
    result = decode(data, DecodeSettings(16, fit))
    assert isinstance(result, Decoded)
    assert (result.width, result.height) == ((265, 257) if orientation < 5 else (257, 265))
    assert difference(data, DecodeSettings(16, fit)) < 0.8


def test_second_picture_behind_a_jpeg_does_not_matter() -> None:
    data = encoded(photograph(500, 375), "MPO", save_all=True, append_images=[noise(4, 100, 100)])
    result = decode(data, DecodeSettings(32))
    assert isinstance(result, Decoded)
    assert (result.width, result.height, result.format) == (500, 375, "MPO")
    assert difference(data, DecodeSettings(32)) < MEAN_DIFFERENCE


@pytest.mark.parametrize(
    ("size", "image_size", "scale"),
    [
        ((64, 64), 32, 1),
        ((127, 1000), 32, 1),
        ((128, 128), 32, 2),
        ((500, 375), 32, 4),
        ((500, 375), 224, 1),
        ((1000, 512), 32, 8),
        ((9000, 9000), 8, 8),
    ],
)
def test_draft_keeps_twice_the_pixels_that_are_wanted(size: tuple[int, int], image_size: int, scale: int) -> None:
    with Image.open(io.BytesIO(encoded(Image.new("RGB", size), "JPEG"))) as opened:
        assert draft(opened, image_size) == scale
        assert opened.size == tuple(-(-side // scale) for side in size)
        assert scale == 1 or min(size) / scale >= 2 * image_size


def test_only_jpegs_are_drafted() -> None:
    with Image.open(io.BytesIO(encoded(Image.new("RGB", (500, 500))))) as opened:
        assert draft(opened, 16) == 1


def test_limits_look_at_the_true_size() -> None:
    data = encoded(photograph(500, 375), "JPEG")
    assert isinstance(decode(data, DecodeSettings(32, min_side=375)), Decoded)
    for settings in (DecodeSettings(32, min_side=376), DecodeSettings(32, max_pixels=500 * 375 - 1)):
        assert isinstance(decode(data, settings), Rejected)


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_cut_jpeg_is_told_from_its_draft_too(options: dict[str, object]) -> None:
    data = encoded(photograph(500, 375), "JPEG", **options)
    result = decode(data[: len(data) // 2], DecodeSettings(32))
    assert isinstance(result, Rejected)
    assert result.reason == "truncated"
