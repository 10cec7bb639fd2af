"""The demo's crawl: repeatable, mixed, partly broken, and with separate truth."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from kd3.demo.crawl import Crawl, odd_files, read_truth, write_crawl
from kd3.demo.pictures import make_picture

SMALLEST_SIDE = 16


@pytest.fixture(scope="module")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> Crawl:
    return write_crawl(tmp_path_factory.mktemp("demo"), images=60, seed=0)


def files_of(crawl: Crawl) -> dict[str, bytes]:
    """Every file of the crawl, those inside of the shards too, side files left out."""
    found: dict[str, bytes] = {}
    for source in map(Path, crawl.sources):
        if source.is_dir():
            paths = (path for path in source.rglob("*") if path.is_file())
            found |= {str(path.relative_to(source.parent)): path.read_bytes() for path in paths}
        else:
            with tarfile.open(source) as shard:
                images = [member for member in shard if member.name.endswith(".jpg")]
                found |= {f"shards/{source.name}/{m.name}": shard.extractfile(m).read() for m in images}
    return found


def is_usable(content: bytes, folder: Path) -> bool:
    path = folder / "file"
    path.write_bytes(content)
    try:
        with Image.open(path) as image:
            image.load()
            return min(image.size) >= SMALLEST_SIDE
    except OSError:
        return False


def test_the_same_seed_gives_the_same_bytes(crawl: Crawl, tmp_path: Path) -> None:
    again = write_crawl(tmp_path, images=60, seed=0)
    assert files_of(again) == files_of(crawl)
    for first, second in zip(crawl.sources[2:], again.sources[2:], strict=True):
        assert Path(first).read_bytes() == Path(second).read_bytes()
    assert again.truth_file.read_bytes() == crawl.truth_file.read_bytes()


def test_another_seed_gives_another_crawl(crawl: Crawl, tmp_path: Path) -> None:
    other = write_crawl(tmp_path, images=60, seed=1)
    shared = read_truth(other.truth_file).keys() & read_truth(crawl.truth_file).keys()
    assert len(shared) < 0.1 * other.images


def test_truth_covers_the_usable_files_and_no_others(crawl: Crawl, tmp_path: Path) -> None:
    truth = read_truth(crawl.truth_file)
    files = files_of(crawl)
    usable = {hashlib.sha256(c).hexdigest() for c in files.values() if is_usable(c, tmp_path)}
    assert usable == truth.keys()
    assert crawl.images == len(usable)
    assert crawl.files == len(files)


def test_truth_lies_outside_of_what_is_crawled(crawl: Crawl) -> None:
    assert not any(crawl.truth_file.is_relative_to(source) for source in crawl.sources)


def test_there_are_exact_duplicates(crawl: Crawl) -> None:
    copies = [name for name in files_of(crawl) if "-copy" in name]
    assert copies
    for name in copies:
        assert files_of(crawl)[name] == files_of(crawl)[name.replace("-copy", "")]


def test_shards_pair_each_image_with_what_a_crawler_knew(crawl: Crawl) -> None:
    with tarfile.open(crawl.sources[-1]) as shard:
        names = shard.getnames()
        about = json.load(shard.extractfile(names[1]))
    assert names[0::2] == [name.replace(".json", ".jpg") for name in names[1::2]]
    assert sorted(about) == ["caption", "url"]


def test_a_little_more_than_half_of_the_pictures_are_digits() -> None:
    draw = random.Random(0)
    truths = [make_picture(draw).truth for _ in range(600)]
    assert 0.5 < sum(truth.isdigit() for truth in truths) / 600 < 0.62
    assert set(truths) == {*"0123456789", "letter", "symbol", "photo"}


def test_odd_files_hold_each_kind_of_trouble(tmp_path: Path) -> None:
    odd = {file.name: file for file in odd_files(random.Random(0))}
    useless = {name for name, file in odd.items() if not is_usable(file.content, tmp_path)}
    assert useless == {"cut-short.jpg", "not-found.jpg", "empty.jpg", "one-pixel.png", "about.txt"}
    assert useless == {name for name, file in odd.items() if file.truth is None}


def test_odd_but_good_files_are_cmyk_palette_and_turned() -> None:
    odd = {file.name: Image.open(io.BytesIO(file.content)) for file in odd_files(random.Random(0)) if file.truth}
    assert odd["print.jpg"].mode == "CMYK"
    assert odd["few-colours.png"].mode == "P"
    phone = odd["phone.jpg"]
    assert ImageOps.exif_transpose(phone).tobytes() == phone.transpose(Image.Transpose.ROTATE_270).tobytes()
