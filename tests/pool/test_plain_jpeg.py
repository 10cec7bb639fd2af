"""An ordinary JPEG that is not opened as a file gives what an opened one gives; others are opened."""

import io
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from pool_pictures import encoded, noise

from kd3.pool.decode import Decoded, DecodeSettings, Rejected, decode, ordinary_frame

SIZES = [(16, 16), (64, 64), (61, 43), (300, 200)]


def outcome(data: bytes, settings: DecodeSettings) -> tuple[object, ...]:
    result = decode(data, settings)
    if isinstance(result, Rejected):
        return (result,)
    return result.digest, result.sha256, result.width, result.height, result.format


def opened(data: bytes, settings: DecodeSettings) -> tuple[object, ...]:
    with mock.patch("kd3.pool.decode.ordinary_frame", return_value=None):
        return outcome(data, settings)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}, {"comment": b"x"}, {"quality": 5}],
)
def test_same_pixels_as_an_opened_one(size: tuple[int, int], mode: str, options: dict[str, object]) -> None:
    data = encoded(noise(1, *size).convert(mode), "JPEG", **options)
    assert ordinary_frame(data) == (*size, mode, not options.get("progressive"))
    for settings in (DecodeSettings(16), DecodeSettings(8, "squash")):
        assert outcome(data, settings) == opened(data, settings)


def test_limits_and_their_words_are_the_same() -> None:
    data = encoded(noise(1, 64, 40), "JPEG")
    for settings in (DecodeSettings(16, min_side=41), DecodeSettings(16, max_pixels=64 * 40 - 1)):
        assert outcome(data, settings) == opened(data, settings)
        assert isinstance(decode(data, settings), Rejected)


def test_what_may_be_turned_inverted_or_more_than_one_is_opened() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    several = encoded(noise(1), "MPO", save_all=True, append_images=[noise(2)])
    for data in (encoded(noise(1), "JPEG", exif=exif), encoded(noise(1).convert("CMYK"), "JPEG"), several):
        assert ordinary_frame(data) is None
    assert ordinary_frame(encoded(noise(1))) is None
    assert ordinary_frame(b"\xff\xd8\xff") is None


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_damage_is_judged_as_in_an_opened_one(options: dict[str, object]) -> None:
    data = encoded(noise(3, 40, 40), "JPEG", **options)
    random = np.random.default_rng(3)
    kept = 0
    settings = DecodeSettings(16, max_pixels=10**6)
    for number in range(600):
        broken = bytearray(data)
        for place in random.integers(0, len(data) if number % 2 else 640, 2):
            broken[place] ^= 1 << int(random.integers(8))
        cut = bytes(broken[: random.integers(1, len(data) + 1)] if number % 5 == 0 else broken)
        assert outcome(cut, settings) == opened(cut, settings)
        kept += ordinary_frame(cut) is not None and isinstance(decode(cut, settings), Decoded)
    assert kept > 50


def test_file_is_not_opened() -> None:
    data = encoded(noise(1, 64, 64), "JPEG")
    with mock.patch.object(Image, "open", side_effect=AssertionError("opened")):
        assert isinstance(decode(data, DecodeSettings(16)), Decoded)
    assert Image.open(io.BytesIO(data)).size == (64, 64)


def segment(kind, body):
    return bytes([0xFF, kind]) + (len(body) + 2).to_bytes(2, "big") + body


FRAME, SCAN = bytes([8, 0, 30, 0, 20, 1, 1, 0x11, 0]), bytes([1, 1, 0, 0, 63, 0])


def header(*frames):
    return b"\xff\xd8" + b"".join(segment(0xC0, frame) for frame in frames) + segment(0xDA, SCAN) + bytes(16)


def test_only_a_header_with_one_frame_of_8_bits_is_ordinary():
    assert ordinary_frame(header(FRAME)) == (20, 30, "L", True)
    assert ordinary_frame(header(FRAME, FRAME)) is None
    assert ordinary_frame(header(bytes([12]) + FRAME[1:])) is None
    assert ordinary_frame(header(FRAME[:5] + bytes([4]) + FRAME[6:])) is None  # four channels
    assert ordinary_frame(header()) is None
