"""Pictures of which a part is missing are refused, also where their decoder fills it; whole ones never are."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from pool_pictures import encoded, noise

from kd3.pool.decode import Decoded, DecodeSettings, Rejected, decode

SETTINGS = DecodeSettings(16)
END = b"\xff\xd9"
JPEGS = {
    "baseline": {},
    "of all chroma": {"subsampling": 0},
    "low quality": {"quality": 10},
    "with restarts": {"restart_marker_rows": 2},
    "optimised": {"optimize": True, "quality": 95},
    "progressive": {"progressive": True},
}
EXIF = Image.Exif()
EXIF[0x0112] = 8


def photograph(width: int = 150, height: int = 110) -> Image.Image:
    """Soft colours with some grain."""
    return Image.blend(noise(1, 9, 7).resize((width, height), Image.Resampling.BICUBIC), noise(2, width, height), 0.15)


def reason(data: bytes, settings: DecodeSettings = SETTINGS) -> str | None:
    result = decode(data, settings)
    return result.reason if isinstance(result, Rejected) else None


@pytest.mark.parametrize("size", [8, 64])  # of a large JPEG only a draft is decoded
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_that_was_cut_and_closed_is_truncated(kind: str, mode: str, size: int) -> None:
    data = encoded(photograph().convert(mode), "JPEG", **JPEGS[kind])
    settings = DecodeSettings(size)
    assert reason(data, settings) is None
    # The last scan of a progressive one, a third of it and more, only sharpens what is there.
    for share in (0.15, 0.25, 0.35) if kind == "progressive" else (0.45, 0.6, 0.8):
        cut = data[: int(share * len(data))].rstrip(b"\xff") + END
        assert reason(cut, settings) == "truncated", share


def test_so_is_one_with_exif_and_a_thumbnail_and_one_with_a_second_picture_behind_it() -> None:
    thumbnail = encoded(noise(3, 40, 30), "JPEG")
    data = encoded(photograph(), "JPEG", exif=EXIF, comment=b"ff " + thumbnail[:4000])
    assert reason(data) is None
    assert reason(data[: len(data) * 2 // 3] + END) == "truncated"
    second = encoded(noise(4, 50, 50), "JPEG")
    assert reason(data + second) is None
    assert reason(data[: len(data) * 2 // 3] + END + second) == "truncated"


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("level", [127, 128, 129])
def test_a_picture_that_ends_in_the_grey_of_missing_blocks_is_whole(level: int, mode: str, kind: str) -> None:
    image = photograph()
    image.paste((level,) * 3, (0, 40, 150, 110))
    assert reason(encoded(image.convert(mode), "JPEG", **JPEGS[kind])) is None
    assert reason(encoded(Image.new(mode, (40, 40), 128 if mode == "L" else (level,) * len(mode)), "JPEG")) is None


def test_whole_jpegs_of_all_sizes_are_kept() -> None:
    for number in range(60):
        width, height = (int(side) for side in np.random.default_rng(number).integers(16, 90, 2))
        kind = list(JPEGS.values())[number % len(JPEGS)]
        assert reason(encoded(noise(number, width, height), "JPEG", **kind)) is None


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "I;16"])
def test_a_png_whose_pixels_were_overwritten_is_refused(mode: str) -> None:
    image = Image.new("I;16", (90, 60), 700) if mode == "I;16" else photograph(90, 60).convert(mode)
    data = encoded(image, compress_level=0)  # stored as they are: the decoder notices nothing
    assert reason(data) is None
    middle = len(data) // 2
    changed = data[:middle] + bytes(byte ^ 0x55 for byte in data[middle : middle + 9]) + data[middle + 9 :]
    assert reason(changed) == "unreadable"
    result = decode(changed, SETTINGS)
    assert isinstance(result, Rejected)
    assert result.detail.startswith("the checksum of its IDAT chunk is wrong")
    assert reason(data[:middle] + bytes(len(data) - middle)) in ("unreadable", "truncated")


@pytest.mark.parametrize("where", ["before", "behind"])
@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt", b"tEXt"])
def test_a_png_with_a_large_profile_or_text_is_read(kind: bytes, where: str) -> None:
    image = noise(5, 16, 16)
    data = encoded(image)
    large = zlib.compress(b"colours " * 400_000)
    body = {b"iCCP": b"p\0\0", b"zTXt": b"t\0\0", b"iTXt": b"t\0\1\0\0\0", b"tEXt": b"t\0"}[kind]
    extra = chunk(kind, body + (b"x" * 70_000_000 if kind == b"tEXt" else large))
    place = data.index(b"IDAT" if where == "before" else b"IEND") - 4
    result = decode(data[:place] + extra + data[place:], SETTINGS)
    assert isinstance(result, Decoded), result
    np.testing.assert_array_equal(result.pixels, np.asarray(image).transpose(2, 0, 1))


def test_without_its_texts_a_png_is_turned_as_its_exif_says_all_the_same() -> None:
    data = encoded(noise(6, 40, 16), exif=EXIF)
    place = data.index(b"IDAT") - 4
    large = chunk(b"zTXt", b"t\0\0" + zlib.compress(bytes(5_000_000)))
    plain, result = (decode(some, SETTINGS) for some in (data, data[:place] + large + data[place:]))
    assert isinstance(plain, Decoded)
    assert isinstance(result, Decoded)
    assert (result.width, result.height) == (16, 40)
    np.testing.assert_array_equal(result.pixels, plain.pixels)


BOX = {
    "HEIC": struct.pack(">I4s4sI", 24, b"ftyp", b"heic", 0) + b"mif1heic" + bytes(50),
    "HEIC of another brand": struct.pack(">I4s4sI", 20, b"ftyp", b"mif1", 0) + b"heix" + bytes(50),
    "JPEG XL": b"\xff\x0a" + bytes(60),
    "JPEG XL in a box": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(60),
}
PACKAGES = {"HEIC": "pillow-heif", "JPEG": "pillow-jxl-plugin"}


@pytest.mark.parametrize("kind", BOX)
def test_kinds_that_need_a_plug_in_are_named_with_it(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pillow_heif", "pillow_jxl"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    result = decode(BOX[kind], SETTINGS)
    assert isinstance(result, Rejected)
    assert result.reason == "needs a plug-in"
    assert result.detail.endswith("pip install " + PACKAGES[kind.split()[0]])
    assert reason(struct.pack(">I4s4sI", 20, b"ftyp", b"isom", 0) + b"mp41" + bytes(50)) == "not an image"


def test_a_plug_in_that_is_installed_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    before = set(Image.OPEN)

    def register() -> None:
        Image.register_open(
            "HEIF",
            lambda file, name: Image.open(io.BytesIO(file.read()[len(BOX["HEIC"]) :])),
            lambda start: start[4:8] == b"ftyp",
        )

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    try:
        image = noise(7, 16, 16)
        result = decode(BOX["HEIC"] + encoded(image), SETTINGS)
        assert isinstance(result, Decoded), result
        np.testing.assert_array_equal(result.pixels, np.asarray(image).transpose(2, 0, 1))
    finally:
        for name in set(Image.OPEN) - before:
            del Image.OPEN[name]
            Image.ID.remove(name)
