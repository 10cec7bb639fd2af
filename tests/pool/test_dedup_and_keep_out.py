"""`kd3 ingest --dedup near` and `--keep-out`: kept images, lists, and no change by a kill."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from kd3.config.flags import build_parser
from kd3.pool import ImagePool, ingest
from kd3.pool.decode import DecodeSettings
from kd3.pool.decoding import decode_records
from kd3.pool.ingest_state import IngestState
from kd3.pool.leaks import KnownImages, overlap, pool_hashes, was_kept_clear
from kd3.runtime.errors import KD3Error
from kd3.sources.finding import list_records


def pictures(count, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (count, 9, 9, 3), dtype=np.uint8)
    return [Image.fromarray(one).resize((48, 48), Image.Resampling.BICUBIC) for one in small]


def rows(path):
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture
def crawl(tmp_path):
    """Six pictures, two of them again in other forms, and one of these once more as the same file."""
    folder = tmp_path / "crawl"
    folder.mkdir()
    some = pictures(6)
    for number, picture in enumerate(some):
        picture.save(folder / f"{number}.png")
    some[1].resize((40, 40)).save(folder / "1_small.jpg", quality=85)
    ImageEnhance.Contrast(some[1]).enhance(0.8).save(folder / "1_flat.png")
    ImageEnhance.Brightness(some[4]).enhance(1.1).save(folder / "4_bright.png")
    (folder / "5_same.png").write_bytes((folder / "5.png").read_bytes())
    return folder


def test_near_copies_are_left_out_and_listed_in_groups(crawl, tmp_path):
    pool = ingest(crawl, tmp_path / "pool", image_size=32, dedup="near", workers=0)
    counts = pool.manifest.counts
    assert (counts.found, counts.kept, counts.duplicates, counts.near_duplicates) == (10, 6, 1, 3)
    listed = rows(tmp_path / "pool" / "near-duplicates.csv")
    assert [(row["group"], row["kept"], row["key"]) for row in listed] == [
        ("1", "1", "1.png"),
        ("1", "0", "1_flat.png"),
        ("1", "0", "1_small.jpg"),
        ("2", "1", "4.png"),
        ("2", "0", "4_bright.png"),
    ]
    assert all(int(row["bits"]) <= 10 and float(row["similarity"]) >= 0.92 for row in listed)
    assert "3 (in groups in near-duplicates.csv)" in pool.summary()
    assert not (tmp_path / "pool" / "kept-out.csv").exists()


def test_without_the_flag_near_copies_stay(crawl, tmp_path):
    pool = ingest(crawl, tmp_path / "pool", image_size=32, workers=0)
    assert (len(pool), pool.manifest.counts.near_duplicates) == (9, 0)
    assert not (tmp_path / "pool" / "near-duplicates.csv").exists()


def test_test_images_are_kept_out_with_their_pairs(crawl, tmp_path):
    one, other = tmp_path / "test" / "ship", tmp_path / "more"
    one.mkdir(parents=True)
    other.mkdir()
    (one / "a.png").write_bytes((crawl / "5.png").read_bytes())
    pictures(6)[2].resize((44, 44)).save(other / "b.jpg", quality=90)
    (other / "broken.png").write_bytes(b"\x89PNG")
    pool = ingest(crawl, tmp_path / "pool", image_size=32, keep_out=[str(one), str(other)], workers=0)
    counts = pool.manifest.counts
    assert (counts.kept, counts.kept_out, counts.duplicates) == (7, 3, 0)
    listed = [(row["key"], row["test_key"]) for row in rows(tmp_path / "pool" / "kept-out.csv")]
    assert listed == [("2.png", "b.jpg"), ("5.png", "a.png"), ("5_same.png", "a.png")]
    assert [(known.source, known.images) for known in pool.manifest.kept_out] == [(str(one), 1), (str(other), 1)]
    assert "3 like one of 2 test images (pairs in kept-out.csv)" in pool.summary()


def test_an_unusable_keep_out_leaves_nothing_behind(crawl, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.bin").write_bytes(b"nothing")
    for wrong, words in ((tmp_path / "nowhere", "does not exist"), (tmp_path / "empty", "holds no image")):
        with pytest.raises(KD3Error, match=words):
            ingest(crawl, tmp_path / "pool", image_size=32, keep_out=[str(wrong)], workers=0)
        assert not (tmp_path / "pool").exists()


def test_a_crawl_that_is_all_kept_out_is_told_as_such(crawl, tmp_path):
    copies = shutil.copytree(crawl, tmp_path / "copies")
    for broken in ("", "no picture"):
        if broken:
            (copies / "page.png").write_text(broken)
        with pytest.raises(KD3Error, match=r"no image of .*copies is left: \d+ are images of --keep-out ") as problem:
            ingest(copies, tmp_path / "pool", image_size=32, keep_out=str(crawl), workers=0)
        assert str(problem.value).endswith("; 1 not an image") == bool(broken)
        assert not (tmp_path / "pool").exists()


def test_going_on_with_other_images_kept_out_is_refused(crawl, tmp_path):
    ingest(crawl, tmp_path / "pool", image_size=32, dedup="near", workers=0)
    with pytest.raises(KD3Error, match="begun with dedup = 'near', not 'exact'"):
        ingest(crawl, tmp_path / "pool", image_size=32, workers=0)
    with pytest.raises(KD3Error, match="begun with keep_out"):
        ingest(crawl, tmp_path / "pool", image_size=32, dedup="near", keep_out=[str(crawl)], workers=0)


def test_an_ingest_begun_again_finds_copies_of_what_it_had(crawl, tmp_path):
    """Committed images are known after a kill; the others come again."""
    outcomes = list(decode_records(list_records([str(crawl)]), DecodeSettings(32), workers=0))

    def fill(folder, cut):
        folder.mkdir()
        state = IngestState(folder, 32, near=True)
        for outcome in outcomes[:cut]:
            state.add(outcome.record, outcome.result)
        state.commit()
        for outcome in outcomes[cut : cut + 2]:  # lost
            state.add(outcome.record, outcome.result)
        state._flush()
        state.close()
        state = IngestState(folder, 32, near=True)
        for outcome in outcomes[cut:]:
            state.add(outcome.record, outcome.result)
        state.commit()
        result = (state.images, state.left_out(), state.hashes().tolist(), list(state.digests()))
        state.close()
        return result

    whole = fill(tmp_path / "whole", len(outcomes))
    assert whole[:2] == (6, (1, 3, 0))
    for cut in range(len(outcomes)):
        assert fill(tmp_path / f"cut{cut}", cut) == whole


def known_of(folder):
    known = KnownImages()
    for outcome in decode_records(list_records([str(folder)]), DecodeSettings(32), workers=0):
        record, decoded = outcome.record, outcome.result
        known.add([(record.source, record.key)], [decoded.sha256], decoded.pixels[None])
    return known


def test_overlap_of_a_pool_with_test_images(crawl, tmp_path):
    test = tmp_path / "test"
    test.mkdir()
    pictures(6)[3].resize((44, 44)).save(test / "near.png")
    (test / "same.png").write_bytes((crawl / "0.png").read_bytes())
    pictures(1, seed=9)[0].save(test / "another.png")
    pool = ingest(crawl, tmp_path / "pool", image_size=32, dedup="near", workers=0)
    found = overlap(pool, known_of(test))
    keys = [key for (key,) in pool.index_rows(("key",))]
    assert {keys[position]: known.key for position, known in found.items()} == {
        "0.png": "same.png",
        "3.png": "near.png",
    }

    clear = ingest(crawl, tmp_path / "clear", image_size=32, keep_out=[str(test)], workers=0)
    assert was_kept_clear(clear, known_of(test))
    assert not was_kept_clear(pool, known_of(test))
    assert overlap(clear, known_of(test)) == {}


def test_hashes_of_a_pool_are_kept_beside_it_and_not_believed_blindly(crawl, tmp_path):
    pool = ingest(crawl, tmp_path / "pool", image_size=32, workers=0)
    hashes = pool_hashes(pool)
    (kept,) = (tmp_path / "pool").glob("hashes-*.npy")
    kept.write_bytes(b"damaged")
    np.testing.assert_array_equal(pool_hashes(pool), hashes)
    np.testing.assert_array_equal(np.load(kept), hashes)
    np.testing.assert_array_equal(pool_hashes(ImagePool.from_array(pool.read(slice(None)))), hashes)
    assert pool.verify() == []


def test_the_manifest_of_an_earlier_version_is_read(crawl, tmp_path):
    ingest(crawl, tmp_path / "pool", image_size=32, workers=0)
    path = tmp_path / "pool" / "manifest.json"
    values = json.loads(path.read_text())
    del values["kept_out"], values["counts"]["kept_out"], values["counts"]["near_duplicates"]
    path.write_text(json.dumps(values))
    assert ImagePool.open(tmp_path / "pool").manifest.counts.near_duplicates == 0


def test_the_flag_is_given_once_for_each_place():
    flags = ["--keep-out", "a,b", "--keep-out", "c"]
    parsed = build_parser().parse_args(["ingest", "crawl", "--out", "p", "--image-size", "32", *flags])
    assert vars(parsed)["keep_out"] == ["a,b", "c"]
