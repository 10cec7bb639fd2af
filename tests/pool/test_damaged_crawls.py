"""Crawls with anything in them: good files are used, the rest is listed, nothing is written elsewhere."""

import csv
import io
import os
import tarfile
from pathlib import Path

import pytest
from pool_pictures import encoded, folder_of, noise, some_files, tar_of, zip_of

import kd3


def rejected(pool: Path) -> dict[str, str]:
    with (pool / "rejected.csv").open(newline="", encoding="utf-8") as handle:
        return {row["key"]: row["reason"] for row in csv.DictReader(handle)}


@pytest.mark.parametrize("name", ["cut.tar", "cut.tar.gz"])
def test_good_part_of_a_truncated_tar_is_used(tmp_path: Path, name: str) -> None:
    files = some_files(20)
    whole = tar_of(tmp_path / "whole", files, "w:gz" if name.endswith("gz") else "w").read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    pool = kd3.ingest(tmp_path / name, tmp_path / "pool", image_size=16)
    kept = pool.index().column("key").to_pylist()
    assert 5 < len(kept) < 15
    assert kept == list(files)[: len(kept)]
    assert rejected(tmp_path / "pool")[name] == "archive damaged"


def test_garbage_archives_in_a_folder_cost_a_row_each(tmp_path: Path) -> None:
    crawl = folder_of(tmp_path / "crawl", some_files(3) | {"x.tar": b"junk" * 400, "y.zip": b"junk", "z.tgz": b"junk"})
    assert len(kd3.ingest(crawl, tmp_path / "pool", image_size=16)) == 3
    assert rejected(tmp_path / "pool") == dict.fromkeys(["x.tar", "y.zip", "z.tgz"], "archive damaged")


def test_archive_in_a_zip_is_no_image(tmp_path: Path) -> None:
    inner = zip_of(tmp_path / "inner.zip", {"a.png": encoded(noise(1))}).read_bytes()
    outer = zip_of(tmp_path / "outer.zip", {"b.png": encoded(noise(2)), "inner.zip": inner, "inner.tar": inner})
    assert len(kd3.ingest(outer, tmp_path / "pool", image_size=16)) == 1
    assert rejected(tmp_path / "pool") == {"inner.zip": "not an image", "inner.tar": "not an image"}


@pytest.mark.parametrize("compression", ["", "gz"])
def test_hostile_tar_members_write_nothing_outside_the_pool(tmp_path: Path, compression: str) -> None:
    (tmp_path / "room").mkdir()
    path = tmp_path / "room" / ("a.tar.gz" if compression else "a.tar")
    names = ["../climber.png", f"{tmp_path}/absolute.png", "a/../../b.png"]
    with tarfile.open(path, f"w:{compression}") as archive:
        for seed, name in enumerate(names):
            member, data = tarfile.TarInfo(name), encoded(noise(seed))
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for kind, name in ((tarfile.SYMTYPE, "link"), (tarfile.FIFOTYPE, "pipe"), (tarfile.LNKTYPE, "hard")):
            member = tarfile.TarInfo(f"{name}.png")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    pool = kd3.ingest(path, tmp_path / "room/pool", image_size=16)
    assert pool.index().column("key").to_pylist() == names
    assert set(rejected(tmp_path / "room/pool").values()) == {"not a regular file"}
    assert {p.name for p in tmp_path.iterdir()} == {"room"}
    assert {p.name for p in (tmp_path / "room").iterdir()} == {path.name, "pool"}


@pytest.mark.timeout(60)
def test_pipe_in_a_folder_does_not_hang(tmp_path: Path) -> None:
    crawl = folder_of(tmp_path / "crawl", some_files(2))
    os.mkfifo(crawl / "pipe.jpg")
    assert len(kd3.ingest(crawl, tmp_path / "pool", image_size=16)) == 2
    assert rejected(tmp_path / "pool") == {"pipe.jpg": "not a regular file"}
