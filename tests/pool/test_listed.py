"""Lists of images: the right image is found for any name."""

import json

import pytest
from pool_pictures import encoded, folder_of, noise

import kd3
from in_process import here
from kd3.pool.listed import ListedImages, line_of

NAMES = [
    "a\tb",
    "a\nb",
    "a\r",
    "\u2028",
    "a\x85b",
    "\x1cb",
    "[1]",
    '["x", "y"]',
    "a\\tb",
    " ",
    "\ufeffz",
    "plain",
    "a\x0bb",
    "\\",
]


def test_a_line_is_ascii_and_one_line():
    for name in (*NAMES, "\udcff"):
        line = line_of(name, name)
        assert line.isascii()
        assert line.count("\n") == 1
        assert len(line.splitlines()) == 1
        assert json.loads(line) == [name, name]


def test_every_name_is_found_and_no_other(tmp_path):
    path = tmp_path / "kept.jsonl"
    for name in NAMES:
        path.write_text(line_of("crawl", name))
        listed = ListedImages(path)
        assert [other for other in NAMES if listed.holds("crawl", other)] == [name]
        assert not listed.holds("another", name)


def test_lists_of_people_and_of_earlier_versions_are_read(tmp_path):
    path = tmp_path / "kept.txt"
    path.write_text("crawl\ta\\tb\\n.png\ncrawl\tx\u2028y\nkey.png\n\n[odd\r\nlast", encoding="utf-8", newline="")
    listed = ListedImages(path)
    for source, key in (
        ("crawl", "a\tb\n.png"),
        ("crawl", "x\u2028y"),
        ("any", "key.png"),
        ("c", "[odd"),
        ("c", "last"),
    ):
        assert listed.holds(source, key), key
    assert not listed.holds("crawl", "a")
    with pytest.raises(kd3.KD3Error, match="does not exist"):
        ListedImages(tmp_path / "none")


def test_a_selection_of_odd_names_filters_its_pool_without_loss(teacher_file, tmp_path):
    names = [f"{number}{name}.png" for number, name in enumerate(NAMES)]
    folder_of(tmp_path / "crawl", {name: encoded(noise(number)) for number, name in enumerate(names)})
    pool = kd3.ingest(tmp_path / "crawl", tmp_path / "pool", image_size=16, workers=0)
    assert len(pool) == len(names)
    selection = kd3.select(teacher_file, pool, tmp_path / "kept", images_per_grid=0, threshold=0.0, device="cpu")
    assert len(selection.positions) == len(names)  # with that threshold
    words = ["pool", "filter", tmp_path / "pool"]
    done = here(*words, "--keep", tmp_path / "kept/kept.jsonl", "--out", tmp_path / "all")
    assert done.returncode == 0, done.stderr
    assert len(kd3.ImagePool.open(tmp_path / "all")) == len(names)
    assert (
        "lists every image" in here(*words, "--drop", tmp_path / "kept/kept.jsonl", "--out", tmp_path / "none").stderr
    )
    half = (tmp_path / "kept/kept.jsonl").read_text(encoding="utf-8").splitlines()[::2]
    (tmp_path / "half.jsonl").write_text("\n".join(half), encoding="utf-8")
    for flag, count in (("--keep", len(half)), ("--drop", len(names) - len(half))):
        done = here(*words, flag, tmp_path / "half.jsonl", "--out", tmp_path / f"pool{flag}")
        assert done.returncode == 0, done.stderr
        assert len(kd3.ImagePool.open(tmp_path / f"pool{flag}")) == count
