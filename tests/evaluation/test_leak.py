"""Overlap of a test set with a student's pool, and its report."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from kd3.config.records import Preparation
from kd3.evaluation.labelled import LabelledImages, leak, pool_of_student
from kd3.pool import ingest


def pictures(count):
    small = np.random.default_rng(3).integers(0, 256, (count, 9, 9, 3), dtype=np.uint8)
    return [Image.fromarray(one).resize((40, 40), Image.Resampling.BICUBIC) for one in small]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A pool of the first five of eight pictures, test images that are the last five."""
    folder = tmp_path_factory.mktemp("leak")
    (folder / "crawl").mkdir()
    for label in ("cat", "ship"):
        (folder / "test" / label).mkdir(parents=True)
    for number, picture in enumerate(pictures(8)):
        if number < 5:
            picture.save(folder / "crawl" / f"{number}.png")
        if number >= 3:
            picture.resize((36, 36)).save(
                folder / "test" / ("cat" if number % 2 else "ship") / f"{number}.jpg", quality=90
            )
    ingest(folder / "crawl", folder / "pool", image_size=32, workers=0)
    run = folder / "run"
    (run / "student").mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump({"pool": str(folder / "pool")}))
    (run / "origin.json").write_text(json.dumps({"pool": content(folder / "pool")}))
    return folder


def content(pool):
    return json.loads((pool / "manifest.json").read_text())["content_hash"]


def labelled(places, **more):
    names = ["cat", "ship"]
    return LabelledImages(str(places / "test"), preparation=Preparation(32), class_names=names, workers=0, **more)


@pytest.mark.parametrize("read_before", [False, True])
@pytest.mark.parametrize("change", [None, ("greyscale", 1.0)])
def test_the_pairs_are_named(places, change, read_before):
    data = labelled(places, change=change)
    if read_before:
        list(data.batches())
    found = leak(pool_of_student(places / "run"), data)
    assert [(pair["key"], pair["test_key"]) for pair in found.to_dict()["pairs"]] == [
        ("3.png", "cat/3.jpg"),
        ("4.png", "ship/4.jpg"),
    ]
    assert found.warning.startswith("2 of the 5 labelled images are in the pool")
    assert "3.png is cat/3.jpg, 4.png is ship/4.jpg)" in found.warning


def test_nothing_is_said_where_nothing_leaked(places, tmp_path):
    clear = ingest(places / "crawl", tmp_path / "pool", image_size=32, keep_out=[str(places / "test")], workers=0)
    assert len(clear) == 3
    found = leak(clear, labelled(places))
    assert found.warning is None
    assert found.to_dict()["pairs"] == []


def test_the_pool_is_found_from_the_student_folder_too(places):
    assert len(pool_of_student(places / "run" / "student")) == 5
    assert pool_of_student(places / "test") is None


def test_another_pool_in_its_place_is_not_taken_for_it(places, tmp_path, capsys):
    other = tmp_path / "run"
    (other / "student").mkdir(parents=True)
    (other / "config.yaml").write_text(yaml.safe_dump({"pool": str(places / "pool")}))
    (other / "origin.json").write_text(json.dumps({"pool": "0" * 64}))
    assert pool_of_student(other) is None
    assert "it is unknown whether the student trained on these images" in capsys.readouterr().err


def test_copies_are_told_among_pictures_that_were_made_alike(tmp_path):
    for number, picture in enumerate(pictures(6)):
        wide = picture.resize((160, 48))
        for place in (tmp_path / "crawl", tmp_path / "test" / ("cat" if number % 2 else "ship")):
            place.mkdir(parents=True, exist_ok=True)
        wide.save(tmp_path / "crawl" / f"{number}.png")
        wide.save(tmp_path / "test" / ("cat" if number % 2 else "ship") / f"{number}.jpg", quality=80)
    pool = ingest(tmp_path / "crawl", tmp_path / "pool", image_size=32, fit="squash", workers=0)
    for fit in ("crop", "squash"):
        data = LabelledImages(
            str(tmp_path / "test"),
            preparation=Preparation(32, fit),
            class_names=["cat", "ship"],
            workers=0,
        )
        assert sorted(leak(pool, data).found) == list(range(6))
        before = [batch.clone() for batch, _ in data.batches()]
        leak(pool, data)
        assert all((one == other).all() for one, (other, _) in zip(before, data.batches(), strict=True))


def test_test_images_are_counted_once_and_every_copy_is_named(places, tmp_path):
    for number, quality in enumerate((60, 80, 95)):
        (tmp_path / "crawl").mkdir(exist_ok=True)
        pictures(8)[3].save(tmp_path / "crawl" / f"copy{number}.jpg", quality=quality)
    pool = ingest(tmp_path / "crawl", tmp_path / "pool", image_size=32, workers=0)
    found = leak(pool, labelled(places))
    assert len(found.to_dict()["pairs"]) == 3
    assert found.warning.startswith("1 of the 5 labelled images are in the pool")


def test_the_same_file_is_found_where_its_looks_say_nothing(places, tmp_path):
    """A picture of one colour looks like any other of one colour."""
    for folder in (tmp_path / "crawl", tmp_path / "test" / "cat"):
        folder.mkdir(parents=True)
        Image.new("RGB", (40, 40), (10, 200, 30)).save(folder / "flat.png")
    pictures(1)[0].save(tmp_path / "crawl" / "other.png")
    pool = ingest(tmp_path / "crawl", tmp_path / "pool", image_size=32, workers=0)
    (pair,) = leak(pool, labelled(tmp_path)).to_dict()["pairs"]
    assert (pair["key"], pair["test_key"], pair["bits"]) == ("flat.png", "cat/flat.png", 0)


def test_pools_are_compared_part_by_part(places, monkeypatch):
    pool = pool_of_student(places / "run")
    whole = leak(pool, labelled(places)).to_dict()
    monkeypatch.setattr("kd3.pool.leaks.AT_ONCE", 2)
    assert leak(pool, labelled(places)).to_dict() == whole
    assert [pair["position"] for pair in whole["pairs"]] == [3, 4]


@pytest.mark.parametrize("kept", [np.zeros(3, np.uint64), np.zeros(5, np.int64), b"x"])
def test_hashes_kept_beside_a_pool_must_be_its_own(kept, places, tmp_path):
    pool = ingest(places / "crawl", tmp_path / "pool", image_size=32, workers=0)
    place = tmp_path / "pool" / f"hashes-{pool.content_hash[:16]}.npy"
    place.write_bytes(kept) if isinstance(kept, bytes) else np.save(place, kept)
    assert [pair["position"] for pair in leak(pool, labelled(places)).to_dict()["pairs"]] == [3, 4]
    assert np.load(place).dtype == np.uint64
