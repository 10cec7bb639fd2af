"""Readers of untrusted data: each target takes bytes and may raise only documented errors."""

import io
import resource
import struct
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, features

from kd3.config.distill import layered
from kd3.models.arch import build_arch
from kd3.models.checkpoint import load_weights
from kd3.models.descriptions import read_description
from kd3.models.student_files import load_student
from kd3.pool.decode import Decoded, DecodeSettings, Rejected, decode
from kd3.pool.image_pool import ImagePool
from kd3.pool.ingestion import ingest
from kd3.runtime.errors import KD3Error
from kd3.studies.plan import read_study

SETTINGS = DecodeSettings(16, max_pixels=1 << 22)


MEMORY = 3 << 30  # bytes of address space that one input may take beside what the process has
SECONDS = 60.0  # that one input may take, on the busiest machine


@contextmanager
def bounded() -> Iterator[None]:
    """Run within the limits of memory and time; an input that exceeds them is a finding."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, hard))
    began = time.monotonic()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert time.monotonic() - began < SECONDS


def seeds() -> dict[str, bytes]:
    """Return a small picture in each format that Pillow writes here."""
    draw = np.random.default_rng(0)
    image = Image.fromarray(draw.integers(0, 256, (20, 24, 3), dtype=np.uint8))
    ways = {
        "jpeg": ("JPEG", image, {}),
        "progressive": ("JPEG", image, {"progressive": True, "quality": 40}),
        "grey jpeg": ("JPEG", image.convert("L"), {}),
        "cmyk": ("JPEG", image.convert("CMYK"), {}),
        "png": ("PNG", image, {}),
        "palette": ("PNG", image.convert("P"), {"transparency": 3}),
        "16 bits": ("PNG", image.convert("I;16"), {}),
        "gif": ("GIF", image.convert("P"), {"save_all": True, "append_images": [image.convert("P")]}),
        "bmp": ("BMP", image, {}),
        "tiff": ("TIFF", image, {"compression": "tiff_lzw"}),
        "tiff, deflate": ("TIFF", image.convert("RGBA"), {"compression": "tiff_adobe_deflate"}),
        "webp": ("WEBP", image, {}),
        "webp, lossless": ("WEBP", image.convert("RGBA"), {"lossless": True}),
        "ppm": ("PPM", image, {}),
        "tga": ("TGA", image, {}),
        "ico": ("ICO", image, {}),
        "jpeg 2000": ("JPEG2000", image, {}),
        "avif": ("AVIF", image, {}),
    }
    written = {}
    for name, (kind, picture, options) in ways.items():
        if kind == "AVIF" and not features.check("avif"):
            continue
        if kind == "JPEG2000" and not features.check("jpg_2000"):
            continue
        data = io.BytesIO()
        picture.save(data, kind, **options)
        written[name] = data.getvalue()
    return written


# How files of formats begin that Pillow reads and does not write, or writes in the name of others alone.
MAGICS = {
    "BUFR": b"BUFR",
    "CUR": b"\0\0\2\0\1\0\x10\x10",
    "DCX": struct.pack("<3I", 987654321, 16, 0),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "FITS": b"SIMPLE  =                    T",
    "FLI": struct.pack("<IHHHHHH", 128, 0xAF12, 2, 20, 24, 8, 3),
    "FTEX": b"FTEX" + struct.pack("<6i", 0, 20, 24, 1, 1, 0),
    "GBR": struct.pack(">5I", 24, 2, 20, 24, 4) + b"GIMP",
    "GRIB": b"GRIB\0\0\0\1",
    "HDF5": b"\x89HDF\r\n\x1a\n",
    "IMT": b"width 20\nheight 24\npixel n8\n\f",
    "IPTC": b"\x1c\x03\x3c\0\2\1\0",
    "MCIDAS": b"\0\0\0\0\0\0\0\4",
    "MPEG": b"\0\0\1\xb3\1\x40\xf0",
    "PCD": bytes(2048) + b"PCD_",
    "PIXAR": b"\200\350\0\0",
    "PSD": b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 20, 24, 8, 3),
    "SUN": struct.pack(">8I", 0x59A66A95, 20, 24, 24, 1440, 1, 0, 0),
    "WMF": b"\xd7\xcd\xc6\x9a\0\0",
    "XPM": b'/* XPM */\nstatic char *x[] = {\n"2 2 1 1",\n"a c #000000",\n"aa","aa"};\n',
    "XVTHUMB": b"P7 332\n#\n#END_OF_COMMENTS\n20 24 255\n",
}


@cache
def plug_ins() -> dict[str, bytes]:
    """Return a seed for each format that Pillow may take a file for: a small picture, or its first bytes."""
    Image.init()
    draw = np.random.default_rng(1)
    image = Image.fromarray(draw.integers(0, 256, (20, 24, 3), dtype=np.uint8))
    found = {}
    for name in sorted(Image.OPEN):
        if name in MAGICS:
            found[name] = MAGICS[name] + draw.integers(0, 40, 2000, dtype=np.uint8).tobytes()
            continue
        for mode in ("RGB", "RGBA", "L", "P", "1"):
            data = io.BytesIO()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of formats that Pillow gives up
                    image.convert(mode).save(data, name)
            except (OSError, ValueError, KeyError):
                continue
            found[name] = data.getvalue()
            break
    return found


def _is_a_sentence(problem: KD3Error) -> None:
    assert "\n" not in str(problem)


def decoded(data: bytes) -> str:
    """Decode; return the format or the reason."""
    with bounded():
        result = decode(data, SETTINGS)
    if isinstance(result, Decoded):
        assert result.pixels.shape == (3, 16, 16)
        return "decoded"
    assert isinstance(result, Rejected)
    return result.reason


def ingested(place: Path, crawl: Path, *, good: int) -> str:
    """Ingest a folder with a number of sound images; return the outcomes of the rest."""
    pool = ingest(crawl, place / "pool", image_size=16, workers=0, max_pixels=1 << 22)
    assert len(pool) >= good
    assert pool.verify() == []
    return ", ".join(sorted(pool.manifest.counts.rejected)) or "taken whole"


def checkpoint(path: Path) -> str:
    """Load weights into a network; all of them, or none."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_arch("kd3:resnet8", num_classes=3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with bounded():
                load_weights(network, path, where="teacher.yaml")
    except KD3Error as problem:
        _is_a_sentence(problem)
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
        return "refused"
    assert all(bool(torch.isfinite(value.float()).all()) for value in network.state_dict().values())
    return "loaded"


def opened_pool(folder: Path) -> str:
    """Open a pool, read all of it and verify it."""
    try:
        pool = ImagePool.open(folder)
        for start in range(0, len(pool), 64):
            pool.read(slice(start, start + 64))
        wrong = pool.verify()
    except KD3Error as problem:
        _is_a_sentence(problem)
        return "refused"
    return "told by verify" if wrong else "sound"


def opened_student(folder: Path) -> str:
    """Load a student's folder."""
    try:
        with bounded():
            load_student(folder)
    except KD3Error as problem:
        _is_a_sentence(problem)
        return "refused"
    return "loaded"


def _settings(read: Callable[[Path], object]) -> Callable[[Path], str]:
    def target(path: Path) -> str:
        try:
            with bounded():
                read(path)
        except KD3Error:
            return "refused"
        return "accepted"

    return target


REQUIRED = {"teacher": "t", "student": "s", "pool": "p", "out": "o"}
CONFIGURATIONS: dict[str, Callable[[Path], str]] = {
    "teacher": _settings(read_description),
    "study": _settings(lambda path: read_study(str(path))),
    "distill": _settings(lambda path: layered(REQUIRED, config=path, where="fuzz")),
}
