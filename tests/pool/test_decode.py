"""Any picture becomes RGB of one size, or a reason."""

import io
import struct
import threading
import warnings
from collections import Counter

import numpy as np
import PIL
import pytest
from PIL import Image, ImageOps
from pool_pictures import encoded, noise

from kd3.pool.decode import Decoded, DecodeSettings, Rejected, decode, pixel_digest
from kd3.sources.record import REASONS

SETTINGS = DecodeSettings(16)


def pixel(data: bytes, settings: DecodeSettings = SETTINGS) -> tuple[int, ...]:
    """The colour in the middle."""
    result = decode(data, settings)
    assert isinstance(result, Decoded), result
    assert result.pixels.shape == (3, settings.image_size, settings.image_size)
    assert result.pixels.dtype == np.uint8
    assert result.pixels.flags.c_contiguous
    return tuple(int(v) for v in result.pixels[:, 8, 8])


def refused(data: bytes, settings: DecodeSettings = SETTINGS) -> str:
    result = decode(data, settings)
    assert isinstance(result, Rejected), result
    assert result.reason in REASONS
    return result.reason


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("1", 0, (0, 0, 0)),
        ("RGBA", (200, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (200, 0, 0, 255), (200, 0, 0)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("LA", (0, 51), (204, 204, 204)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 257 * 40, (40, 40, 40)),
        ("I;16", 200, (1, 1, 1)),
        ("P", 0, (0, 0, 0)),
    ],
)
def test_every_png_mode_keeps_its_colour(mode: str, colour: object, expected: tuple[int, ...]) -> None:
    assert pixel(encoded(Image.new(mode, (20, 20), colour))) == expected


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        pytest.param(
            "YCbCr",
            (128, 128, 128),
            (128, 128, 128),
            marks=pytest.mark.skipif(PIL.__version__ < "13", reason="Pillow 12 cannot read what it writes here"),
        ),
        ("F", 0.5, (128, 128, 128)),
        ("F", 65535.0, (255, 255, 255)),
        ("I", 65535, (255, 255, 255)),
        ("I", 2**31 - 1, (255, 255, 255)),
        ("I", 40 * 257, (40, 40, 40)),
        ("I;16B", 65535, (255, 255, 255)),
    ],
)
def test_every_tiff_mode_keeps_its_colour(mode: str, colour: object, expected: tuple[int, ...]) -> None:
    assert pixel(encoded(Image.new(mode, (20, 20), colour), "TIFF")) == expected


def test_cmyk_jpeg_is_not_inverted() -> None:
    red, green, blue = pixel(encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG", quality=95))
    assert red > 240
    assert max(green, blue) < 15


def test_transparent_index_of_a_palette_becomes_white() -> None:
    image = Image.new("P", (20, 20), 3)
    image.putpalette(list(range(60)))
    assert pixel(encoded(image)) == (9, 10, 11)
    assert pixel(encoded(image, transparency=3)) == (255, 255, 255)


def test_transparent_colour_of_rgb_becomes_white() -> None:
    data = encoded(Image.new("RGB", (20, 20), (1, 2, 3)), transparency=(1, 2, 3))
    assert pixel(data) == (255, 255, 255)


def test_animation_gives_its_first_frame() -> None:
    first, second = Image.new("RGB", (20, 20), (255, 0, 0)), Image.new("RGB", (20, 20), (0, 0, 255))
    assert pixel(encoded(first, "GIF", save_all=True, append_images=[second])) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_corner_as_pillow_does(orientation: int) -> None:
    image = noise(1, 16, 16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, exif=exif)
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened)).transpose(2, 0, 1)
    result = decode(data, SETTINGS)
    assert isinstance(result, Decoded)
    np.testing.assert_array_equal(result.pixels, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_that_pillow_turns_itself_is_not_turned_twice(orientation: int) -> None:
    image, turned = noise(1, 16, 16), noise(1, 16, 16)
    if orientation > 1:
        turned = image.transpose(list(Image.Transpose)[[0, 3, 1, 5, 4, 6, 2][orientation - 2]])
    result = decode(encoded(image, "TIFF", tiffinfo={0x0112: orientation}), SETTINGS)
    assert isinstance(result, Decoded)
    np.testing.assert_array_equal(result.pixels, np.asarray(turned).transpose(2, 0, 1))


def test_size_is_told_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    result = decode(encoded(noise(1, 40, 20), exif=exif), SETTINGS)
    assert isinstance(result, Decoded)
    assert (result.width, result.height, result.format) == (20, 40, "PNG")


@pytest.mark.parametrize("problem", [SyntaxError("not a TIFF"), struct.error("short"), ValueError()])
def test_damaged_exif_does_not_cost_the_image(problem: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise problem

    monkeypatch.setattr(Image.Image, "getexif", fail)
    assert isinstance(decode(encoded(noise(1)), SETTINGS), Decoded)


def test_image_of_the_right_size_keeps_its_pixels() -> None:
    image = noise(2, 16, 16)
    result = decode(encoded(image), SETTINGS)
    assert isinstance(result, Decoded)
    np.testing.assert_array_equal(result.pixels, np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize("width", [17, 18, 31])
def test_crop_takes_the_centre_unblurred_where_the_shorter_side_fits(width: int) -> None:
    image = noise(3, width, 16)
    result = decode(encoded(image), SETTINGS)
    assert isinstance(result, Decoded)
    left = (width - 16) // 2
    np.testing.assert_array_equal(result.pixels, np.asarray(image)[:, left : left + 16].transpose(2, 0, 1))


def test_squash_shows_the_whole_image_and_crop_the_centre() -> None:
    wide = Image.new("RGB", (96, 32), (255, 0, 0))
    wide.paste((0, 255, 0), (32, 0, 64, 32))
    data = encoded(wide)
    crop, squash = decode(data, SETTINGS), decode(data, DecodeSettings(16, fit="squash"))
    assert isinstance(crop, Decoded)
    assert isinstance(squash, Decoded)
    assert (crop.pixels[1, :, 1:-1] == 255).all()
    assert tuple(squash.pixels[:, 8, 0]) == (255, 0, 0)
    assert tuple(squash.pixels[:, 8, 8]) == (0, 255, 0)


def test_reasons_of_refusal() -> None:
    good = encoded(noise(4, 64, 64))
    assert refused(b"") == "empty"
    assert refused(b"<html>not here</html>") == "not an image"
    assert refused(np.random.default_rng(0).bytes(3000)) == "not an image"
    assert refused(good[: len(good) // 2]) == "truncated"
    for format in ("JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        data = encoded(noise(4, 64, 64), format)
        assert refused(data[: len(data) // 2]) == "truncated", format
    assert refused(encoded(noise(4, 15, 40))) == "too small"
    assert refused(good, DecodeSettings(16, max_pixels=64 * 64 - 1)) == "too many pixels"


def test_limits_are_checked_before_pixels_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(noise(4, 64, 64))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    assert refused(data, DecodeSettings(16, max_pixels=1000)) == "too many pixels"
    assert refused(data, DecodeSettings(16, min_side=65)) == "too small"


def test_our_limit_replaces_pillows_for_the_time_of_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert isinstance(decode(encoded(noise(4, 64, 64)), SETTINGS), Decoded)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_pillows_limit_survives_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = encoded(noise(4, 64, 64))
    threads = [threading.Thread(target=lambda: [decode(data, SETTINGS) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Image.MAX_IMAGE_PIXELS == 100


def test_no_warning_of_pillow_leaks() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(encoded(noise(5), "TIFF")[:-40], SETTINGS)
        decode(encoded(Image.new("P", (20, 20)), transparency=b"\0\1"), SETTINGS)


@pytest.mark.parametrize("problem", [MemoryError(), SyntaxError("x"), RecursionError(), KeyError(1)])
def test_whatever_a_decoder_raises_is_a_rejection(problem: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise problem

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    assert refused(encoded(noise(6))) == "unreadable"


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_flipped_and_missing_bytes_never_raise(format: str) -> None:
    data = encoded(noise(7, 32, 32), format)
    random, outcomes = np.random.default_rng(7), Counter[str]()
    for _ in range(60):
        broken = bytearray(data)
        for place in random.integers(0, len(data), 4):
            broken[place] ^= 1 << int(random.integers(8))
        result = decode(bytes(broken[: random.integers(1, len(data) + 1)]), DecodeSettings(16, max_pixels=10**6))
        outcomes["decoded" if isinstance(result, Decoded) else result.reason] += 1
    assert set(outcomes) <= {"decoded", "truncated", "unreadable", "not an image", "too many pixels", "too small"}
    assert outcomes.total() - outcomes["decoded"] > 20  # most are cut


def test_postscript_from_a_crawl_is_never_run(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(buffer, "EPS")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", None)  # calling it would be told as "unreadable"
    result = decode(buffer.getvalue(), DecodeSettings(32))
    assert isinstance(result, Rejected)
    assert result.reason == "not an image"


def test_the_digest_is_that_of_the_pixels_in_their_order():
    found = decode(encoded(noise(4)), DecodeSettings(16))
    assert found.digest == pixel_digest(found.pixels) != pixel_digest(found.pixels[::-1])


def test_an_image_for_which_there_is_no_room_is_rejected(monkeypatch):
    def none_left(*_, **__):
        raise MemoryError

    monkeypatch.setattr("kd3.pool.decode.read_picture", none_left)
    found = decode(encoded(noise(4)), DecodeSettings(16))
    assert (found.reason, found.detail) == ("unreadable", "MemoryError: there is no room to resize it")
