"""A crawl in parts on several machines, and one pool of the parts; pools of pools."""

import contextlib
import csv
import tarfile

import numpy as np
import pytest
from PIL import Image

import kd3
from in_process import here
from kd3.pool import ImagePool, ingest, merge
from kd3.pool.derive import derive_pool
from kd3.pool.ingest_state import IngestState
from kd3.pool.merge import merge_pools
from kd3.runtime.errors import KD3Error


def picture(number):
    small = np.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((40, 40), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """Two tars and some files: 14 pictures, an exact copy and a near one in other parts, and two that are none."""
    folder = tmp_path_factory.mktemp("crawl")
    for number in range(14):
        picture(number).save(folder / f"{number:02d}.png")
    (folder / "98_again.png").write_bytes((folder / "01.png").read_bytes())
    picture(2).resize((36, 36)).save(folder / "97_near.jpg", quality=90)
    for number in (20, 21):
        (folder / f"{number}_page.jpg").write_text(f"<html>{number}")
    for name, numbers in (("a.tar", range(4)), ("b.tar", range(4, 8))):
        with tarfile.open(folder / name, "w") as archive:
            for number in numbers:
                archive.add(folder / f"{number:02d}.png", f"{number:02d}.png")
                (folder / f"{number:02d}.png").unlink()
    return folder


def parts_of(pieces, place, of, **settings):
    made = []
    for number in range(1, of + 1):
        with contextlib.suppress(KD3Error):  # a part of nothing but pages
            part = place / f"part{number}"
            made.append(ingest(pieces, part, image_size=32, workers=0, shard=f"{number}/{of}", **settings))
    return made


@pytest.mark.parametrize("of", [2, 3, 5])
@pytest.mark.parametrize("dedup", ["exact", "near"])
def test_parts_that_are_merged_in_order_are_the_whole(pieces, tmp_path, of, dedup):
    whole = ingest(pieces, tmp_path / "whole", image_size=32, workers=0, dedup=dedup)
    parts = parts_of(pieces, tmp_path, of, dedup=dedup)
    merged = merge_pools(parts, tmp_path / "merged")
    assert merged.content_hash == whole.content_hash
    assert merged.index().equals(whole.index())
    one, other = merged.manifest.counts, whole.manifest.counts
    assert (one.kept, one.duplicates, one.near_duplicates) == (other.kept, other.duplicates, other.near_duplicates)
    assert one.found == sum(part.manifest.counts.found for part in parts)
    assert merged.verify() == []
    assert not list((tmp_path / "merged").glob("*.sqlite*"))
    if dedup == "near":
        with (tmp_path / "merged" / "near-duplicates.csv").open(newline="") as handle:
            assert [(row["group"], row["kept"]) for row in csv.DictReader(handle)] == [("1", "1"), ("1", "0")]


def test_lists_of_the_parts_are_kept(pieces, tmp_path):
    parts = parts_of(pieces, tmp_path, 2)
    merged = merge_pools(parts, tmp_path / "merged")
    with (tmp_path / "merged" / "rejected.csv").open(newline="") as handle:
        rejected = [row["key"] for row in csv.DictReader(handle)]
    assert sorted(rejected) == ["20_page.jpg", "21_page.jpg"]
    assert merged.manifest.counts.rejected == {"not an image": 2}


def test_a_second_merge_finds_the_first_and_another_is_refused(pieces, tmp_path, capsys):
    parts = parts_of(pieces, tmp_path, 3)
    merge_pools(parts, tmp_path / "merged")
    capsys.readouterr()
    merge_pools(parts, tmp_path / "merged")
    assert "there is nothing to do" in capsys.readouterr().err
    with pytest.raises(KD3Error, match="was begun with merged"):
        merge_pools(parts[::-1], tmp_path / "merged")
    with pytest.raises(KD3Error, match="was not made by a merge"):
        merge_pools(parts, tmp_path / "part1")


def test_a_killed_merge_begins_anew(pieces, tmp_path):
    parts = parts_of(pieces, tmp_path, 2)
    folder = tmp_path / "merged"
    folder.mkdir()
    state = IngestState(folder, 32)
    state.begin({"merged": [part.content_hash for part in parts]})
    state.close()
    whole = ingest(pieces, tmp_path / "whole", image_size=32, workers=0)
    assert merge_pools(parts, folder).content_hash == whole.content_hash


def test_pools_that_do_not_belong_together(pieces, tmp_path, pool_folder):
    one = ingest(pieces, tmp_path / "one", image_size=32, workers=0)
    for other, words in (
        (ImagePool.open(pool_folder), "cannot be merged with the 32 of"),
        (ingest(pieces, tmp_path / "squashed", image_size=32, workers=0, fit="squash"), "fit = 'squash'"),
        (ImagePool.from_array(np.zeros((1, 3, 32, 32), np.uint8)), "in memory"),
    ):
        with pytest.raises(KD3Error, match=words):
            merge_pools([one, other], tmp_path / "merged")
        assert not (tmp_path / "merged").exists()


def test_parts_of_pools_know_how_their_pictures_were_fitted(pieces, tmp_path):
    cropped = ingest(pieces, tmp_path / "cropped", image_size=32, workers=0, dedup="near")
    squashed = ingest(pieces, tmp_path / "squashed", image_size=32, workers=0, fit="squash")
    some = derive_pool(cropped, tmp_path / "some", share=0.4)
    others = derive_pool(squashed, tmp_path / "others", share=0.4)
    merged = merge_pools([some, cropped], tmp_path / "merged")
    assert len(merged) == len(cropped)
    assert {name: merged.manifest.settings[name] for name in ("fit", "dedup")} == {"fit": "crop", "dedup": "near"}
    for pools in ([some, others], [cropped, others], [squashed, some]):
        with pytest.raises(KD3Error, match=r"was made with fit = '(crop|squash)' and .* with '(crop|squash)'"):
            merge_pools(pools, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(("shard", "words"), [("3/2", "no part of a whole"), ("0/2", "pattern"), ("x", "pattern")])
def test_a_shard_that_is_none(pieces, tmp_path, shard, words):
    with pytest.raises(KD3Error, match=words):
        ingest(pieces, tmp_path / "pool", image_size=32, shard=shard)


def test_too_little_to_be_divided(pieces, tmp_path):
    with pytest.raises(KD3Error, match="too few for 1,000 parts"):
        ingest(pieces, tmp_path / "pool", image_size=32, workers=0, shard="1/1000")
    assert not (tmp_path / "pool").exists()


def test_the_command_line(pieces, tmp_path):
    parts_of(pieces, tmp_path, 2)
    done = here("pool", "merge", tmp_path / "part1", tmp_path / "part2", "--out", tmp_path / "pool", "--quiet")
    assert done.returncode == 0, done.stderr
    assert "15 images of 32 x 32" in done.stdout
    assert "every image is as it was" in here("pool", "verify", tmp_path / "pool").stdout
    assert here("pool", "info", tmp_path / "pool").stdout.startswith("pool ")
    sampled = here("pool", "sample", tmp_path / "pool", "--share", "0.4", "--out", tmp_path / "some", "--quiet")
    assert "6 images" in sampled.stdout
    keys = [key for (key,) in ImagePool.open(tmp_path / "pool").index_rows(("key",))]
    (tmp_path / "list.txt").write_text("\n".join([*keys[:4], "another.png"]) + "\n")
    for flag, count in (("--keep", 4), ("--drop", 11)):
        out = tmp_path / flag
        done = here("pool", "filter", tmp_path / "pool", flag, tmp_path / "list.txt", "--out", out, "--quiet")
        assert done.returncode == 0, done.stderr
        assert len(ImagePool.open(out)) == count


def test_a_selections_list_filters_the_pool_that_it_was_made_of(teacher_file, pool_folder, tmp_path):
    selection = kd3.select(teacher_file, pool_folder, tmp_path / "selection", images_per_grid=0)
    done = here(
        *("pool", "filter", pool_folder, "--keep", tmp_path / "selection" / "kept.jsonl", "--out", tmp_path / "clean")
    )
    assert done.returncode == 0, done.stderr
    assert len(ImagePool.open(tmp_path / "clean")) == len(selection.positions)


def test_what_is_wrong_is_told_in_a_sentence(pool_folder, tmp_path):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in pool_folder.iterdir():
        if path.is_file() and path.name != ".lock":
            (damaged / path.name).write_bytes(path.read_bytes())
    with (damaged / "images-00000.bin").open("r+b") as handle:
        handle.write(bytes(16))
    (tmp_path / "none.txt").write_text("nothing\n")
    for words, message in (
        (["sample", pool_folder, "--out", "x"], "needs --share"),
        (["sample", pool_folder, "--share", "0.5"], "needs --out"),
        (["filter", pool_folder, "--out", "x"], "either --keep or --drop"),
        (["filter", pool_folder, "--out", "x", "--keep", tmp_path / "none.txt"], "lists no image of pool"),
        (["filter", pool_folder, "--out", "x", "--keep", "nowhere.txt"], "the list nowhere.txt does not exist"),
        (["merge", pool_folder, "--out", "x"], "at least two pools"),
        (["info", pool_folder, "--share", "0.5"], "has no use for --share"),
        (["verify", damaged], "is damaged: "),
        (["polish", pool_folder], "'info', 'verify', 'merge', 'sample' or 'filter'"),
    ):
        done = here("pool", *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr


def test_a_merge_that_another_process_has_just_finished_is_left_as_it_is(pieces, tmp_path, monkeypatch):
    parts, out = parts_of(pieces, tmp_path, 2), tmp_path / "merged"
    check, files = merge.check_place, {}

    def overtaken(*words):
        monkeypatch.setattr(merge, "check_place", check)
        merge_pools(parts, out)
        files.update((path, path.stat().st_mtime_ns) for path in out.iterdir())
        check(*words)

    monkeypatch.setattr(merge, "check_place", overtaken)
    assert merge_pools(parts, out).content_hash == ImagePool.open(out).content_hash
    assert files
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == files
