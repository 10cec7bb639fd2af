"""The place of a pool: other files are never touched, for any names."""

import hashlib
import json
import os
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_pictures import encoded, folder_of, noise, some_files, tar_of

import kd3
from kd3.config.pool_commands import IngestConfig
from kd3.pool.ingest_state import DATABASE
from kd3.pool.ingestion import ingest_with
from kd3.runtime.errors import KD3Error

NOT_UTF8 = os.fsdecode(b"caf\xe9")


@pytest.fixture
def crawl(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "crawl", some_files(3))


def test_glob_that_would_match_the_pool_itself_is_refused(crawl: Path, tmp_path: Path) -> None:
    with pytest.raises(KD3Error, match="lies in the source"):
        kd3.ingest(str(crawl / "*"), crawl / "deep/pool", image_size=16)
    assert not (crawl / "deep").exists()


def test_finished_pool_outlives_its_crawl(crawl: Path, tmp_path: Path) -> None:
    first = kd3.ingest(crawl, tmp_path / "pool", image_size=16)
    shutil.rmtree(crawl)
    assert kd3.ingest(crawl, tmp_path / "pool", image_size=16).content_hash == first.content_hash


def test_database_of_another_program_is_left_alone(crawl: Path, tmp_path: Path) -> None:
    mine = folder_of(tmp_path / "mine", {"images-7.bin": b"precious"})
    database = sqlite3.connect(mine / DATABASE)
    database.execute("CREATE TABLE theirs (a)")
    database.close()
    before = (mine / DATABASE).read_bytes()
    with pytest.raises(KD3Error, match="no database of kd3"):
        kd3.ingest(crawl, mine, image_size=16)
    assert (mine / DATABASE).read_bytes() == before
    assert (mine / "images-7.bin").read_bytes() == b"precious"


def test_manifest_of_another_program_is_left_alone(crawl: Path, tmp_path: Path) -> None:
    mine = folder_of(tmp_path / "mine", {"manifest.json": b"{}"})
    with pytest.raises(KD3Error, match="is not of the format kd3-pool"):
        kd3.ingest(crawl, mine, image_size=16)
    assert [path.name for path in mine.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("data", [b"junk" * 1000, b"SQLite format 3\0" + b"\xff" * 4000])
def test_damaged_database_is_reported(crawl: Path, tmp_path: Path, data: bytes) -> None:
    folder_of(tmp_path / "pool", {DATABASE: data})
    with pytest.raises(KD3Error, match=r"ingest\.sqlite is damaged"):
        kd3.ingest(crawl, tmp_path / "pool", image_size=16)


def test_database_that_turns_out_damaged_on_the_way_is_reported(
    crawl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def malformed(*_: object) -> None:
        raise sqlite3.DatabaseError("database disk image is malformed")

    monkeypatch.setattr("kd3.pool.ingest_state.IngestState.add", malformed)
    with pytest.raises(KD3Error, match=r"ingest\.sqlite is damaged \(database disk image is malformed\)"):
        kd3.ingest(crawl, tmp_path / "pool", image_size=16)


def test_lock_file_of_a_dead_process_does_not_matter(crawl: Path, tmp_path: Path) -> None:
    folder_of(tmp_path / "pool", {".lock": b""})
    assert len(kd3.ingest(crawl, tmp_path / "pool", image_size=16)) == 3
    assert not (tmp_path / "pool/.lock").exists()


@pytest.mark.parametrize("place", ["crawl/0/00000.png/pool", "x" * 300])
def test_place_that_cannot_be_made_is_told_in_a_sentence(crawl: Path, tmp_path: Path, place: str) -> None:
    source = crawl / "1"
    with pytest.raises(KD3Error, match="cannot write pool"):
        kd3.ingest(source, tmp_path / place, image_size=16)


def test_glob_without_a_match_leaves_nothing_behind(crawl: Path, tmp_path: Path) -> None:
    with pytest.raises(KD3Error, match="no file matches"):
        kd3.ingest(str(crawl / "*.tar"), tmp_path / "pool", image_size=16)
    assert [path.name for path in tmp_path.iterdir()] == ["crawl"]


def test_braces_stand_for_shards(tmp_path: Path) -> None:
    for shard in range(3):
        tar_of(tmp_path / f"{shard:02d}.tar", {"a.png": encoded(noise(shard))})
    pool = kd3.ingest(str(tmp_path / "{00..02}.tar"), tmp_path / "pool", image_size=16)
    assert [Path(source).name for source in pool.index().column("source").to_pylist()] == ["00.tar", "01.tar", "02.tar"]


def test_folder_names_need_not_be_utf8(tmp_path: Path) -> None:
    files = {f"{NOT_UTF8}.png": encoded(noise(8))} | some_files(2)
    source = folder_of(tmp_path / NOT_UTF8, files)
    tar_of(source / f"{NOT_UTF8}.tar", {"a.png": encoded(noise(9))})
    out = tmp_path / f"{NOT_UTF8}-pool"
    pool = kd3.ingest(source, out, image_size=16)
    assert (len(pool), pool.verify()) == (4, [])
    assert "caf\\udce9.png" in pool.index().column("key").to_pylist()
    assert "caf\\udce9-pool" in pool.summary()
    assert kd3.ingest(source, out, image_size=16).content_hash == pool.content_hash
    by_glob = kd3.ingest(str(tmp_path / NOT_UTF8 / "*"), tmp_path / "by_glob", image_size=16)
    assert len(by_glob) == 4


def test_rejected_files_are_listed_so(tmp_path: Path) -> None:
    crawl = folder_of(
        tmp_path / "crawl",
        {
            "a.jpg": b"",
            'b,"c".jpg': b"<html>",
            "good.png": encoded(noise(0)),
            "tiny.png": encoded(noise(1, 7, 40)),
            "wide.png": encoded(noise(2, 60, 20)),
        },
    )
    pool = kd3.ingest(crawl, tmp_path / "pool", image_size=16, max_pixels=1000)
    assert (tmp_path / "pool/rejected.csv").read_bytes().decode() == (
        "source,key,reason,detail\r\n"
        f"{crawl},a.jpg,empty,\r\n"
        f'{crawl},"b,""c"".jpg",not an image,\r\n'
        f'{crawl},tiny.png,too small,"7 x 40, the shorter side under 16"\r\n'
        f'{crawl},wide.png,too many pixels,"60 x 20, more than 1,000"\r\n'
    )
    assert pool.manifest.counts.rejected == {"empty": 1, "not an image": 1, "too many pixels": 1, "too small": 1}


def test_manifest_has_these_entries(crawl: Path, tmp_path: Path) -> None:
    kd3.ingest(crawl, tmp_path / "pool", image_size=16, workers=0)
    manifest = json.loads((tmp_path / "pool/manifest.json").read_text())
    for varying in ("content_hash", "kd3", "created", "seconds"):
        assert manifest.pop(varying)
    for name, digest in manifest.pop("files").items():
        assert hashlib.sha256((tmp_path / "pool" / name).read_bytes()).hexdigest() == digest
    assert manifest == {
        "format": "kd3-pool",
        "version": 1,
        "image_size": 16,
        "preparation": {"channels": 3, "colours": "rgb", "fit": "crop", "resampling": "bicubic", "size": 16},
        "images": 3,
        "counts": {
            "found": 3,
            "kept": 3,
            "duplicates": 0,
            "near_duplicates": 0,
            "kept_out": 0,
            "rejected": {},
            "skipped": 0,
        },
        "parts": [{"file": "images-00000.bin", "images": 3}],
        "sources": [str(crawl)],
        "settings": {
            "sources": [str(crawl)],
            "image_size": 16,
            "fit": "crop",
            "min_side": 16,
            "max_pixels": 100_000_000,
            "limit": None,
            "dedup": "exact",
            "keep_out": [],
            "shard": None,
            "trust_entries": False,
            "private_hosts": False,
        },
        "kept_out": [],
    }


@settings(deadline=None, max_examples=6)  # each syncs files
@given(part_bytes=st.integers(1, 6 * 768))
def test_content_hash_does_not_depend_on_the_size_of_parts(
    part_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("parts")
    source = folder_of(place / "crawl", {f"{n}.png": encoded(noise(n, 16, 16)) for n in range(5)})
    config = IngestConfig(sources=[str(source)], out=str(place / "pool"), image_size=16, workers=0)
    pool = ingest_with(config, part_bytes=part_bytes)
    assert len(pool.manifest.parts) == -(-5 // max(1, part_bytes // 768))
    expected = hashlib.sha256(b"kd3-pool 16\n")
    for n in range(5):
        pixels = np.asarray(noise(n, 16, 16)).transpose(2, 0, 1).tobytes()
        expected.update(hashlib.blake2b(pixels, digest_size=16).digest())
    assert pool.content_hash == expected.hexdigest()
