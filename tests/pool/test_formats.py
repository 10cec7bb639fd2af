"""Each format of images that crawls are made of, from the bytes of a file to the colours of a pixel."""

import io
import struct
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageOps, features
from pool_pictures import encoded, noise

from kd3.pool.decode import Decoded, DecodeSettings, Rejected, decode

SETTINGS = DecodeSettings(16)
LOSSLESS = {
    "PNG": {},
    "BMP": {},
    "TIFF": {},
    "WEBP": {"lossless": True},
    "PPM": {},
    "TGA": {},
    "JPEG2000": {"irreversible": False},
}
LOSSY = {"JPEG": {"quality": 95}, "WEBP": {"quality": 95}, "AVIF": {"quality": 90}}
HALF = (255, 0, 0, 128)  # red, half of it seen

needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")


def with_avif(names: list[str]) -> list[object]:
    return [pytest.param(name, marks=needs_avif) if name == "AVIF" else name for name in names]


def pixels(data: bytes) -> np.ndarray:
    result = decode(data, SETTINGS)
    assert isinstance(result, Decoded), result
    return result.pixels


def smooth(width: int = 16, height: int = 16) -> Image.Image:
    """A picture that lossy formats keep: colours that run from corner to corner."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [x * 255 // (width - 1), y * 255 // (height - 1), np.full_like(x, 128)]
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))


@pytest.mark.parametrize("format", LOSSLESS)
def test_lossless_formats_keep_every_pixel(format: str) -> None:
    image = noise(1, 16, 16)
    data = encoded(image, format, **LOSSLESS[format])
    np.testing.assert_array_equal(pixels(data), np.asarray(image).transpose(2, 0, 1))
    result = decode(data, SETTINGS)
    assert isinstance(result, Decoded)
    assert result.format == format


@pytest.mark.parametrize("format", with_avif(list(LOSSY)))
def test_lossy_formats_keep_the_colours(format: str) -> None:
    image = smooth()
    found = pixels(encoded(image, format, **LOSSY[format])).astype(int)
    assert np.abs(found - np.asarray(image).transpose(2, 0, 1)).mean() < 6


def test_gif_keeps_the_colours_of_its_palette() -> None:
    image = noise(1, 16, 16).quantize(64)
    found = pixels(encoded(image, "GIF"))
    np.testing.assert_array_equal(found, np.asarray(image.convert("RGB")).transpose(2, 0, 1))


@pytest.mark.parametrize("format", with_avif(["GIF", "WEBP", "PNG", "TIFF", "AVIF"]))
def test_of_several_frames_the_first_is_taken(format: str) -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ((250, 0, 0), (0, 0, 250), (0, 250, 0))]
    red, green, blue = pixels(encoded(frames[0], format, save_all=True, append_images=frames[1:]))[:, 8, 8].astype(int)
    assert red > 230
    assert max(green, blue) < 20


@pytest.mark.parametrize("format", with_avif(["PNG", "WEBP", "TIFF", "AVIF", "TGA", "JPEG2000"]))
@pytest.mark.parametrize(("colour", "expected"), [(HALF, (255, 127, 127)), ((0, 0, 0, 0), (255, 255, 255))])
def test_alpha_lies_over_white(format: str, colour: tuple[int, ...], expected: tuple[int, ...]) -> None:
    options = {"WEBP": {"lossless": True, "exact": True}, "AVIF": {"quality": 100}}.get(format, {})
    image = Image.new("RGBA", (20, 20), colour)
    image.putpixel((19, 19), (0, 0, 0, 255))
    found = pixels(encoded(image, format, **options))[:, 4, 4]
    assert np.abs(found.astype(int) - expected).max() <= 6


@pytest.mark.parametrize("format", ["BMP", "TGA", "DIB"])
def test_alpha_that_was_never_used_hides_nothing(format: str) -> None:
    image = Image.new("RGBA", (20, 20), (40, 90, 200, 0))
    image.paste((250, 10, 10, 0), (0, 0, 10, 20))
    if format != "TGA":  # Pillow writes these without an alpha; this header has a mask for one
        pixels_first = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).tobytes("raw", "BGRA")
        header = struct.pack(
            "<IiiHHIIiiII4I", 56, 20, 20, 1, 32, 3, 1600, 0, 0, 0, 0, 0xFF0000, 0xFF00, 0xFF, 0xFF << 24
        )
        data = header + pixels_first
        data = data if format == "DIB" else b"BM" + struct.pack("<IHHI", 14 + len(data), 0, 0, 14 + 56) + data
        with Image.open(io.BytesIO(data)) as opened:
            assert (opened.format, opened.mode) == (format, "RGBA")
    else:
        data = encoded(image, format)
    found = pixels(data)
    assert (found[:, 8, 3].tolist(), found[:, 8, 13].tolist()) == ([250, 10, 10], [40, 90, 200])
    image.putpixel((19, 19), (0, 0, 0, 1))  # one pixel that is there: an alpha that is used
    if format == "TGA":
        assert pixels(encoded(image, format))[:, 8, 3].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("level", "shown"), [(0, 0), (130, 130), (255, 255), (256, 1), (130 * 257, 130), (65535, 255), (2**30, 128)]
)
def test_integers_of_32_bits_have_the_narrowest_range_that_holds_them(level: int, shown: int) -> None:
    ramp = np.full((20, 20), level, np.int32)
    ramp[0] = 0
    data = encoded(Image.fromarray(ramp), "TIFF")
    assert pixels(data)[:, 12, 8].tolist() == [shown] * 3


def test_a_dark_picture_of_16_bits_stays_dark() -> None:
    for format in ("PNG", "PPM", "TIFF"):
        assert pixels(encoded(Image.new("I;16", (20, 20), 250), format))[:, 8, 8].tolist() == [1, 1, 1]


def test_transparent_colour_of_a_gif_is_white() -> None:
    image = Image.new("P", (20, 20), 1)
    image.putpalette([0, 0, 0, 9, 9, 9])
    assert pixels(encoded(image, "GIF", transparency=1))[:, 8, 8].tolist() == [255, 255, 255]


@pytest.mark.parametrize("format", with_avif(["JPEG", "PNG", "WEBP", "AVIF"]))
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth(), format, exif=exif, quality=95)
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB")).transpose(2, 0, 1).astype(int)
    found = pixels(data).astype(int)
    assert np.abs(found - expected).max() <= 8
    plain = np.asarray(smooth()).transpose(2, 0, 1).astype(int)
    assert (np.abs(found - plain).mean() < 8) == (orientation == 1)


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_is_shown_in_its_colours(format: str) -> None:
    for ink, expected in (
        ((0, 255, 255, 0), (255, 0, 0)),
        ((0, 0, 0, 255), (0, 0, 0)),
        ((255, 0, 0, 0), (0, 255, 255)),
    ):
        found = pixels(encoded(Image.new("CMYK", (32, 32), ink), format))[:, 8, 8]
        assert np.abs(found.astype(int) - expected).max() < 16


@pytest.mark.parametrize("value", [0, 257, 257 * 100, 65535])
def test_16_bits_become_8(value: int) -> None:
    for format in ("PNG", "TIFF"):
        grey = pixels(encoded(Image.new("I;16", (20, 20), value), format))[:, 8, 8]
        assert grey.tolist() == [value // 257] * 3
    colours = b"P6\n20 20\n65535\n" + value.to_bytes(2, "big") * 3 * 400
    assert pixels(colours)[:, 8, 8].tolist() == [value // 257] * 3


@needs_avif
def test_avif_meets_the_same_limits_as_others() -> None:
    data = encoded(noise(2, 64, 48), "AVIF")
    result = decode(data, SETTINGS)
    assert isinstance(result, Decoded)
    assert (result.width, result.height, result.format) == (64, 48, "AVIF")
    for settings, reason in (
        (DecodeSettings(16, min_side=49), "too small"),
        (DecodeSettings(16, max_pixels=64), "too many"),
    ):
        refused = decode(data, settings)
        assert isinstance(refused, Rejected)
        assert refused.reason.startswith(reason)
    for share in (0.1, 0.5, 0.9):
        cut = decode(data[: int(len(data) * share)], SETTINGS)
        assert isinstance(cut, Rejected)
        assert cut.reason in ("truncated", "unreadable", "not an image")
    random, outcomes = np.random.default_rng(3), Counter[str]()
    for _ in range(40):
        broken = bytearray(data)
        for place in random.integers(0, len(data), 4):
            broken[place] ^= 1 << int(random.integers(8))
        found = decode(bytes(broken), DecodeSettings(16, max_pixels=10**6))
        if isinstance(found, Decoded):
            assert found.pixels.shape == (3, 16, 16)
        outcomes["decoded" if isinstance(found, Decoded) else found.reason] += 1
    assert outcomes["decoded"] > 0
    assert outcomes.total() - outcomes["decoded"] > 0
    assert set(outcomes) <= {"decoded", "unreadable", "truncated", "not an image", "too small", "too many pixels"}
