"""In a tar of WebDataset the fields beside an image are no images of the crawl."""

import io
import tarfile
from pathlib import Path

import pytest
from pool_pictures import encoded, noise, tar_of

from kd3.pool import ingest
from kd3.sources.finding import records
from kd3.sources.record import InMemory, Unusable
from kd3.sources.tar import without_masks


def kept(path: Path) -> list[str]:
    return [one.key for one in records([str(path)]) if not isinstance(one.location, Unusable)]


MASKS = {
    "before and behind": (["7.depth.png", "7.jpg", "7.json", "7.seg.png"], ["7.jpg"]),
    "of several samples": (["a/1.jpg", "a/1.seg.png", "a/2.jpg", "a/2.seg.png"], ["a/1.jpg", "a/2.jpg"]),
    "with more dots": (["x.webp", "x.mask.0.png", "x.mask.1.png"], ["x.webp"]),
    "in folders with dots": (["v1.2/1.jpg", "v1.2/1.seg.png"], ["v1.2/1.jpg"]),
    "in capitals": (["A.JPG", "A.Seg.PNG"], ["A.JPG"]),
    "with metadata between": (["1.edge.png", "1.json", "1.txt", "1.jpeg"], ["1.jpeg"]),
    "below the current folder": (["./1.jpg", "./1.seg.png"], ["1.jpg"]),
}
IMAGES = {
    "no image of the name": ["holiday.2021.jpg", "holiday.2022.jpg", "holiday.json"],
    "another name": ["1.jpg", "10.seg.png", "11.jpg"],
    "another folder": ["a/1.jpg", "b/1.seg.png"],
    "two plain fields": ["1.jpg", "1.png"],
    "no extension": ["picture", "picture.old.png"],
    "hidden in nothing": ["1.png", "2.png"],
}


@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
@pytest.mark.parametrize("kind", MASKS)
def test_masks_beside_an_image_are_sidecars(kind: str, ending: str, tmp_path: Path) -> None:
    names, expected = MASKS[kind]
    files = {name: encoded(noise(number)) for number, name in enumerate(names)}
    assert kept(tar_of(tmp_path / f"s{ending}", files, "w:gz" if ending.endswith("gz") else "w")) == expected


@pytest.mark.parametrize("kind", IMAGES)
def test_a_dot_in_a_name_makes_no_mask(kind: str, tmp_path: Path) -> None:
    files = {name: encoded(noise(number)) for number, name in enumerate(IMAGES[kind])}
    assert kept(tar_of(tmp_path / "s.tar", files)) == [name for name in IMAGES[kind] if not name.endswith(".json")]


def test_they_are_counted_as_skipped(tmp_path: Path) -> None:
    files = {f"{n}.{field}": encoded(noise(9 * n + len(field))) for n in range(5) for field in ("jpg", "seg.png")}
    pool = ingest(tar_of(tmp_path / "s.tar", files), tmp_path / "pool", image_size=16, workers=0)
    assert (len(pool), pool.manifest.counts.skipped, pool.manifest.counts.rejected) == (5, 5, {})


def test_order_is_kept_and_names_without_end_do_not_wait_without_end() -> None:
    names = [f"1.{number}.png" for number in range(500)]
    drawn = 0

    def members():
        nonlocal drawn
        for name in names:
            drawn += 1
            yield name, InMemory(b"x")

    found = without_masks(members())
    first, _ = next(found)
    assert first == names[0]
    assert drawn < 20
    assert [first, *(name for name, _ in found)] == names
    large = iter([(name, InMemory(bytes(40 << 20))) for name in names[:3]])
    assert [name for name, _ in without_masks(large)] == names[:3]


def test_a_damaged_tar_gives_what_waited_and_the_damage(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("1.depth.png", "1.seg.png"):
            member, data = tarfile.TarInfo(name), encoded(noise(len(name)))
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    (tmp_path / "s.tar").write_bytes(buffer.getvalue().rstrip(b"\0")[:-100] + b"\1" * 900)
    assert "1.depth.png" in kept(tmp_path / "s.tar")
