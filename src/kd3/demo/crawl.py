"""The crawl: pictures as ordinary files of mixed formats and as tar shards, odd files, and the truth about each."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from kd3.demo.pictures import make_digit, make_picture

_ORIENTATION_TAG = 0x0112
_TURNED_LEFT = 6  # EXIF: the viewer must turn the stored pixels a quarter to the right
_SIDE = 72  # large enough for each file below to need more than one network packet
_ERROR_PAGE = "<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>Not Found</body></html>\n"
_NOTE = "Pictures found by searching for digits, letters and signs.\n"


@dataclass(frozen=True)
class OddFile:
    """A file's name, bytes and content; None if no picture can be read from it."""

    name: str
    content: bytes
    truth: str | None


def odd_files(draw: random.Random) -> Iterator[OddFile]:
    """Give one file of each odd kind."""
    whole = _jpeg(_square(make_digit("5", draw)))
    yield OddFile("cut-short.jpg", whole[: len(whole) // 2], None)
    yield OddFile("not-found.jpg", _ERROR_PAGE.encode(), None)
    yield OddFile("empty.jpg", b"", None)
    yield OddFile("one-pixel.png", _encoded(Image.new("RGB", (1, 1), (200, 30, 30)), "PNG"), None)
    yield OddFile("about.txt", _NOTE.encode(), None)
    yield OddFile("print.jpg", _jpeg(_square(make_digit("8", draw)).convert("CMYK")), "8")
    palette = _square(make_digit("3", draw)).convert("RGB").quantize(16)
    yield OddFile("few-colours.png", _encoded(palette, "PNG"), "3")
    yield OddFile("phone.jpg", _turned_by_exif(_square(make_digit("4", draw))), "4")


def _square(image: Image.Image) -> Image.Image:
    return image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)


def _encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def _jpeg(image: Image.Image) -> bytes:
    return _encoded(image, "JPEG", quality=90)


def _turned_by_exif(image: Image.Image) -> bytes:
    """Return a JPEG whose pixels lie on their side and whose EXIF says so."""
    exif = Image.Exif()
    exif[_ORIENTATION_TAG] = _TURNED_LEFT
    # Stored a quarter to the left, so that following the tag stands it upright again.
    return _encoded(image.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=90, exif=exif)


_SITES = ("site-a", "site-b")
_FILES_PER_FOLDER = 500
_SHARDS = 2
_SHARD_SHARE = 0.35
_TWICE_EVERY = 100  # one file in a hundred has a copy under another name
_FORMATS = {"jpg": 0.60, "png": 0.25, "webp": 0.10, "gif": 0.05}


@dataclass(frozen=True)
class Crawl:
    """Location and contents of the crawl."""

    sources: list[str]  # what `kd3 ingest` is given: folders of sites, then the shards
    truth_file: Path  # outside of the crawl: file, sha256, truth
    files: int  # all of them, side files of the shards not counted
    images: int  # different images that can be read


@dataclass
class _Ledger:
    """True content of each readable file."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    files: int = 0

    def enter(self, name: str, content: bytes, truth: str | None) -> None:
        self.files += 1
        if truth is not None:
            self.rows.append((name, hashlib.sha256(content).hexdigest(), truth))

    def write(self, path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(("file", "sha256", "truth"))
            writer.writerows(self.rows)


def write_crawl(folder: Path, *, images: int, seed: int) -> Crawl:
    """Write a crawl of `images` pictures below `folder / "crawl"`; same seed, same bytes.

    The truth goes to `folder / "crawl-truth.csv"`: it is read only at the end of the demo, to count digits among the
    kept images.
    """
    draw = random.Random(seed)
    root, ledger = folder / "crawl", _Ledger()
    in_shards = round(images * _SHARD_SHARE)
    for site, amount in zip(_SITES, _split(images - in_shards, len(_SITES)), strict=True):
        _write_site(root / site, site, amount, ledger, draw)
    shards = []
    for number, amount in enumerate(_split(in_shards, _SHARDS)):
        path = root / "shards" / f"{number:05d}.tar"
        _write_shard(path, f"shards/{path.name}", amount, ledger, draw)
        shards.append(str(path))
    ledger.write(folder / "crawl-truth.csv")
    return Crawl(
        sources=[str(root / site) for site in _SITES] + shards,
        truth_file=folder / "crawl-truth.csv",
        files=ledger.files,
        images=len({digest for _, digest, _ in ledger.rows}),
    )


def read_truth(path: Path) -> dict[str, str]:
    """Return the content of each readable file of the crawl, by the file's SHA-256 in hexadecimal.

    A pool's index holds the same digest, so images are identified under any name.
    """
    with path.open(newline="", encoding="utf-8") as handle:
        return {row["sha256"]: row["truth"] for row in csv.DictReader(handle)}


def _split(amount: int, parts: int) -> list[int]:
    return [amount // parts + (part < amount % parts) for part in range(parts)]


def _write_site(folder: Path, site: str, amount: int, ledger: _Ledger, draw: random.Random) -> None:
    """Write one site: folders of pictures, some of them twice, and one file of each odd kind."""

    def write(name: str, content: bytes, truth: str | None) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        ledger.enter(f"{site}/{name}", content, truth)

    for number in range(amount):
        content, ending, truth = _next_file(draw)
        name = f"{number // _FILES_PER_FOLDER:03d}/img-{number:05d}"
        write(f"{name}.{ending}", content, truth)
        if number % _TWICE_EVERY == 0:
            write(f"{name}-copy.{ending}", content, truth)
    for odd in odd_files(draw):
        write(f"found/{odd.name}", odd.content, odd.truth)


def _write_shard(path: Path, shown: str, amount: int, ledger: _Ledger, draw: random.Random) -> None:
    """Write one shard as img2dataset does: NNNNNNNNN.jpg and a JSON file of the same name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for number in range(amount):
            key = f"{int(path.stem):05d}{number:04d}"
            picture = make_picture(draw)
            content = _encode(picture.image, "jpg", draw)
            # Captions are what a crawl has: words unrelated to the content of the picture.
            about = {"url": f"https://site-c.example/{key}.jpg", "caption": f"picture {number}"}
            _add(shard, f"{key}.jpg", content)
            _add(shard, f"{key}.json", json.dumps(about).encode())
            ledger.enter(f"{shown}/{key}.jpg", content, picture.truth)


def _add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    # A bare TarInfo has no time and no owner, so the same seed gives the same tar.
    member = tarfile.TarInfo(name)
    member.size = len(content)
    shard.addfile(member, io.BytesIO(content))


def _next_file(draw: random.Random) -> tuple[bytes, str, str]:
    picture = make_picture(draw)
    ending = draw.choices(list(_FORMATS), weights=list(_FORMATS.values()))[0]
    return _encode(picture.image, ending, draw), ending, picture.truth


def _encode(image: Image.Image, ending: str, draw: random.Random) -> bytes:
    buffer = io.BytesIO()
    save: Callable[..., None] = image.save
    if ending == "jpg":
        save(buffer, "JPEG", quality=draw.randint(60, 92))
    elif ending == "webp":
        # method=0 is the fastest; the default takes four times as long for the same picture.
        save(buffer, "WEBP", quality=draw.randint(60, 92), method=0)
    else:
        save(buffer, ending.upper())
    return buffer.getvalue()
