"""Pools that somebody else made: what is odd in their files is refused, and no name in them leads elsewhere."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

import kd3
from in_process import here
from kd3.pool.ingest_state import DATABASE
from kd3.pool.leaks import KnownImages, overlap
from kd3.pool.listed import names
from kd3.scoring import views


@pytest.fixture
def pool(pool_folder, tmp_path):
    # Without what other tests have stored beside it.
    return Path(shutil.copytree(pool_folder, tmp_path / "pool", ignore=shutil.ignore_patterns("teacher_*")))


def refused(*words):
    done = here(*words)
    assert done.returncode == 2, (words, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stderr


def reindexed(pool, name, values):
    table = parquet.read_table(pool / "index.parquet")
    column = pa.array([values] * len(table)) if not isinstance(values, pa.Array) else values
    parquet.write_table(table.set_column(table.schema.get_field_index(name), name, column), pool / "index.parquet")


ODD = {"numbers": 7, "lists": ["a.png"], "structs": {"path": "a.png"}, "times": 1.5}


@pytest.mark.parametrize("name", ["source", "key"])
@pytest.mark.parametrize("kind", ODD)
def test_columns_of_another_type_are_refused(kind, name, pool, tmp_path, teacher_file):
    reindexed(pool, name, ODD[kind])
    (tmp_path / "kept.jsonl").write_text('["a", "000.png"]\n')
    for words in (
        ("pool", "sample", pool, "--share", 0.5, "--out", tmp_path / "out"),
        ("pool", "filter", pool, "--keep", tmp_path / "kept.jsonl", "--out", tmp_path / "out"),
        ("pool", "merge", pool, pool, "--out", tmp_path / "out"),
        ("select", "--teacher", teacher_file, "--pool", pool, "--out", tmp_path / "out", "--device", "cpu"),
    ):
        assert f"column '{name}' must hold text" in refused(*words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "kind"), [("key", pa.string()), ("sha256", pa.string()), ("digest", pa.binary(16))])
def test_rows_without_a_value_are_refused(name, kind, pool, tmp_path):
    reindexed(pool, name, pa.array([None] * 120, kind))
    assert f"column '{name}' is empty in some rows" in refused("pool", "merge", pool, pool, "--out", tmp_path / "out")


def test_hashes_that_are_none_are_refused_by_what_compares_them(pool, tmp_path):
    reindexed(pool, "sha256", "zz")
    tested = KnownImages()
    tested.add([("lost", "a")], [bytes(32)], np.zeros((1, 3, 16, 16), np.uint8))
    with pytest.raises(kd3.KD3Error, match="'zz' is no SHA-256"):
        overlap(kd3.ImagePool.open(pool), tested)
    assert "'zz' is no SHA-256" in refused("pool", "merge", pool, pool, "--out", tmp_path / "out")


def test_names_come_in_the_order_of_the_images(pool_folder):
    opened = kd3.ImagePool.open(pool_folder)
    keys = [key for _, some in names(opened) for key in some]
    assert keys == opened.index()["key"].to_pylist()


MANIFESTS = {
    "a negative side": {"image_size": -16},
    "a side beyond all": {"image_size": 1 << 20},
    "a part without images": {"parts": [{"file": "images-00000.bin", "images": 0}]},
    "a part of negative images": {"parts": [{"file": "a", "images": -1}, {"file": "b", "images": 121}]},
    "a hash that is a path": {"content_hash": "../../../elsewhere"},
    "another fit": {"preparation": None, "settings": {"fit": {"a": 1}}},
}


@pytest.mark.parametrize("what", MANIFESTS)
def test_manifests_that_cannot_be_are_refused(what, pool):
    path = pool / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **MANIFESTS[what]}))
    with pytest.raises(kd3.KD3Error, match=r"is damaged|was made by another kd3"):
        assert kd3.ImagePool.open(pool).preparation


def test_more_images_than_memory_holds_are_refused_in_a_sentence(pool, monkeypatch):
    def full(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(np, "memmap", full)
    with pytest.raises(kd3.KD3Error, match=r"images-00000\.bin cannot be read: .*Cannot allocate memory"):
        kd3.ImagePool.open(pool)


def test_a_command_whose_memory_runs_out_says_so(pool, monkeypatch):
    def runs_out(*_):
        raise MemoryError("Unable to allocate 7.28 TiB for an array")

    monkeypatch.setattr(kd3.ImagePool, "summary", runs_out)
    assert "the memory is not enough for this: Unable to allocate 7.28 TiB" in refused("pool", "info", pool)


def test_lists_of_what_was_left_out_are_read_with_care(pool, tmp_path):
    (pool / "near-duplicates.csv").write_text("group,kept\nfirst,1\n")
    said = refused("pool", "merge", pool, pool, "--out", tmp_path / "out")
    assert "near-duplicates.csv cannot be read" in said


@pytest.mark.parametrize("line", ["/etc/passwd", "../../000.png", "[" * 50_000, '["crawl"]', "\x1b[2J", "*"])
def test_a_line_of_a_list_is_a_name_and_never_a_place(line, pool, tmp_path):
    (tmp_path / "kept.txt").write_text(f"{line}\n000.png\n")
    done = here("pool", "filter", pool, "--keep", tmp_path / "kept.txt", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert [key for _, some in names(kd3.ImagePool.open(tmp_path / "out")) for key in some] == ["000.png"]


@pytest.mark.skipif(os.name != "posix", reason="makes a link")
def test_what_is_kept_beside_a_pool_is_written_into_its_folder_alone(pool, tmp_path):
    (tmp_path / "notes").write_text("precious")
    known = kd3.ImagePool.open(pool)
    place = pool / f"hashes-{known.content_hash[:16]}.npy"
    place.unlink(missing_ok=True)
    place.symlink_to(tmp_path / "notes")
    (pool / f".{place.name}.{os.getpid()}.tmp").symlink_to(tmp_path / "notes")
    tested = KnownImages()
    tested.add([("lost", "a")], [bytes(32)], np.zeros((1, 3, 16, 16), np.uint8))
    overlap(known, tested)
    assert (tmp_path / "notes").read_text() == "precious"
    assert np.load(place).shape == (120,)


@pytest.mark.parametrize("name", ["images-00000.bin", "ingest.sqlite"])
def test_an_unfinished_pool_is_not_written_through_links(name, crawl, tmp_path, monkeypatch):
    out, own = tmp_path / "pool", tmp_path / "own"

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("kd3.pool.ingestion._finish", stop)
        with pytest.raises(KeyboardInterrupt):
            kd3.ingest(crawl, out, image_size=16, workers=0)
    name = name if name.endswith(".bin") else DATABASE
    (out / name).rename(own)
    (out / name).symlink_to(own)
    with own.open("ab") as handle:
        handle.write(b"of the reader's own")
    before = own.read_bytes()
    assert f"{out / name} is a link" in refused("ingest", crawl, "--out", out, "--image-size", 16, "--workers", 0)
    assert own.read_bytes() == before


def test_features_are_not_kept_through_a_link(tmp_path):
    own, path = tmp_path / "own", tmp_path / "x.features"
    own.write_bytes(b"12345678")
    path.symlink_to(own)
    views._make(path, 8)
    assert not path.is_symlink()
    assert (path.read_bytes(), own.read_bytes()) == (bytes(8), b"12345678")


CACHES = ("teacher_logits", "teacher_features", "teacher_statistics")


@pytest.mark.skipif(os.name != "posix", reason="makes a link")
@pytest.mark.parametrize("name", CACHES)
def test_no_folder_of_stored_outputs_that_is_a_link_is_written_to(name, pool, tmp_path, teacher_file):
    own = tmp_path / "own"
    own.mkdir()
    (pool / name).symlink_to(own)
    out = tmp_path / "out"
    for words in (
        ("select", "--teacher", teacher_file, "--pool", pool, "--out", out, "--device", "cpu"),
        ("distill", "--teacher", teacher_file, "--student", "kd3:resnet8", "--pool", pool, "--out", out),
    ):
        assert f"{pool / name} is a link" in refused(*words)
    assert list(own.iterdir()) == []
    assert not out.exists()


@pytest.mark.skipif(os.name != "posix", reason="makes links")
def test_no_file_is_emptied_through_the_lock_of_stored_logits(pool, tmp_path, teacher_file):
    words = ("select", "--teacher", teacher_file, "--pool", pool, "--device", "cpu", "--out")
    assert here(*words, tmp_path / "first").returncode == 0
    (lock,) = (pool / "teacher_logits").glob("*.lock")
    lock.unlink()
    own = tmp_path / "own"
    own.write_text("precious")
    lock.symlink_to(own)
    assert f"{lock} is a link" in refused(*words, tmp_path / "second")
    assert own.read_text() == "precious"
