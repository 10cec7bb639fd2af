"""What reads data that nobody vouches for: each target takes bytes and may raise nothing but what it promises."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, features

from kd3.config.distill_layers import layered
from kd3.errors import KD3Error
from kd3.experiments.plan import read_study
from kd3.models.arch import build_arch
from kd3.models.checkpoint import load_weights
from kd3.models.description import read_description
from kd3.models.student_files import load_student
from kd3.pool.decode import Decoded, DecodeSettings, Rejected, decode
from kd3.pool.image_pool import ImagePool
from kd3.pool.ingestion import ingest

SETTINGS = DecodeSettings(16, max_pixels=1 << 22)


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


def _is_a_sentence(problem: KD3Error) -> None:
    assert "\n" not in str(problem)


def decoded(data: bytes) -> str:
    """Decode; return the format or the reason."""
    result = decode(data, SETTINGS)
    if isinstance(result, Decoded):
        assert result.pixels.shape == (3, 16, 16)
        return "decoded"
    assert isinstance(result, Rejected)
    return result.reason


def ingested(place: Path, crawl: Path, *, good: int) -> str:
    """Ingest a folder in which so many images are sound; return what became of the rest."""
    pool = ingest(crawl, place / "pool", image_size=16, workers=0, max_pixels=1 << 22)
    assert len(pool) >= good
    assert pool.verify() == []
    return ", ".join(sorted(pool.manifest.counts.rejected)) or "taken whole"


def checkpoint(path: Path) -> str:
    """Load weights into a network; it has all of them or is as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_arch("kd3:resnet8", num_classes=3)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
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
        load_student(folder)
    except KD3Error as problem:
        _is_a_sentence(problem)
        return "refused"
    return "loaded"


def _settings(read: Callable[[Path], object]) -> Callable[[Path], str]:
    def target(path: Path) -> str:
        try:
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
