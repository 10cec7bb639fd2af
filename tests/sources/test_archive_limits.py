"""Archives that ask for all memory, all time or all disk affect no other archive."""

import io
import itertools
import os
import struct
import subprocess
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pool_containers import KINDS, files_of, pictures
from pool_pictures import encoded, noise
from pyarrow import ipc, parquet

import kd3
from kd3.pool import decoding
from kd3.pool.decode import Decoded, DecodeSettings, Rejected, decode
from kd3.sources import apart, remote
from kd3.sources.containers import Limits
from kd3.sources.finding import Archive, contents
from kd3.sources.record import InMemory, Record, Unreadable, Unusable

MIB = 1 << 20


def outcome(archive: Path, kind: str, limits: Limits) -> list[Record]:
    return list(contents(Archive(kind, str(archive), "crawl", "a/"), limits))


def reasons(records: list[Record]) -> list[str]:
    return [record.location.reason if isinstance(record.location, Unusable) else "" for record in records]


def nulls(count: int) -> np.ndarray:
    return np.zeros((count, 1000, 1000, 3), np.uint8)


# Memory.


def one_long_row(path: Path) -> None:
    parquet.write_table(pa.table({"image": [bytes(600 * MIB)]}), path, compression="zstd")


def one_value_in_many_rows(path: Path) -> None:
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 64, pa.int32()), pa.array([bytes(40 * MIB)]))
    parquet.write_table(pa.table({"image": values}), path, compression="zstd", store_schema=False)


def packed_arrow(path: Path) -> None:
    batch = pa.record_batch({"image": [bytes(700 * MIB)]})
    with ipc.new_file(path, batch.schema, options=ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write(batch)


def npz_of_a_long_header(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\x93NUMPY\2\0" + struct.pack("<I", 800 * MIB) + bytes(800 * MIB))


@pytest.mark.parametrize("make", [one_long_row, one_value_in_many_rows, packed_arrow, npz_of_a_long_header])
def test_an_archive_that_wants_more_memory_than_it_may_have_costs_itself(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    kind = "npz" if "npz" in make.__name__ else "arrow" if "arrow" in make.__name__ else "parquet"
    make(tmp_path / "x")
    assert (tmp_path / "x").stat().st_size < 2 * MIB
    before = peak_of_this_process()
    found = outcome(tmp_path / "x", kind, Limits(memory=400 * MIB))
    assert peak_of_this_process() - before < 100 * MIB
    assert len(found) == 1
    assert reasons(found)[0] in ("archive damaged", "file too large", "no images"), found[0].location


def peak_of_this_process() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def test_an_array_of_a_giant_image_holds_no_images(tmp_path: Path) -> None:
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"shape": (1, 20000, 20000, 3), "fortran_order": False, "descr": "|u1"}
        )
        file.truncate(1_300_000_000)  # a hole
    (record,) = outcome(tmp_path / "x.npy", "npy", Limits())
    assert reasons([record]) == ["no images"]
    assert "1,200,000,000 bytes" in record.location.detail


# Time.


def slow_pickle(path: Path) -> None:
    path.write_bytes(b"\x80\x04" + b"N0" * 10_000_000 + b"N.")


def slow_npz(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive, archive.open("x.npy", "w") as file:
        header = {"shape": (64, 4000, 4000, 3), "fortran_order": False, "descr": "|u1"}
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(60):
            file.write(bytes(4 * MIB))


@pytest.mark.parametrize(("make", "kind"), [(slow_pickle, "pickle"), (slow_npz, "npz")])
def test_an_archive_that_gives_nothing_for_too_long_costs_itself(
    make: Callable[[Path], None], kind: str, tmp_path: Path
) -> None:
    make(tmp_path / "x")
    began = time.monotonic()
    found = outcome(tmp_path / "x", kind, Limits(seconds=0.3))
    assert time.monotonic() - began < 30
    assert reasons(found) == ["took too long"]
    assert found[0].key == "a"


def test_a_count_that_is_no_longer_wanted_ends(tmp_path: Path) -> None:
    slow_pickle(tmp_path / "x")
    asked = itertools.count()
    with pytest.raises(TimeoutError):
        apart.count("pickle", str(tmp_path / "x"), Limits(seconds=600), given_up=lambda: next(asked) >= 1)


# What is unpacked.


def packed_tar(path: Path, members: dict[str, int]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, size in members.items():
            member = tarfile.TarInfo(name)
            member.size = size
            archive.addfile(member, io.BytesIO(bytes(size)))


def test_a_compressed_tar_gives_files_up_to_the_limit_of_the_archive(tmp_path: Path) -> None:
    packed_tar(tmp_path / "x.tar.gz", {f"{number}.png": 4 * MIB for number in range(20)})
    found = outcome(tmp_path / "x.tar.gz", "tar", Limits(unpacked=18 * MIB))
    assert reasons(found) == ["", "", "", "", "file too large"]
    assert "18,874,368 bytes (--max-unpacked)" in found[-1].location.detail
    assert reasons(outcome(tmp_path / "x.tar.gz", "tar", Limits(unpacked=100 * MIB))) == [""] * 20


def test_what_is_passed_over_counts_too(tmp_path: Path) -> None:
    packed_tar(tmp_path / "x.tar.gz", {"a.json": 30 * MIB, "b.txt": 30 * MIB, "c.png": 10})
    found = outcome(tmp_path / "x.tar.gz", "tar", Limits(unpacked=40 * MIB))
    assert reasons(found) == ["sidecar", "file too large"]


def test_a_zip_and_a_npz_give_files_up_to_the_limit_of_the_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(5):
            archive.writestr(f"{number}.png", bytes(MIB))
    assert reasons(outcome(tmp_path / "x.zip", "zip", Limits(unpacked=3 * MIB))) == ["", "", "", "file too large"]
    np.savez_compressed(tmp_path / "x.npz", nulls(3))
    found = outcome(tmp_path / "x.npz", "npz", Limits(unpacked=7_000_000))
    assert reasons(found) == ["", "", "file too large"]


def test_the_limit_grows_with_the_archive_and_can_be_set(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    os.truncate(tmp_path / "x", 1 << 30)
    assert Limits().most(str(tmp_path / "x")) == 50 << 30
    assert Limits().most(str(tmp_path / "gone")) == 4 << 30
    assert Limits(unpacked=7).most(str(tmp_path / "x")) == 7


def test_members_of_a_zip_that_share_bytes_are_refused(tmp_path: Path) -> None:
    whole, overlapping = tmp_path / "whole.zip", tmp_path / "overlapping.zip"
    for path, extra in ((whole, 0), (overlapping, 30)):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.png", encoded(noise(1)))
            archive.writestr("b.png", encoded(noise(2)))
            for number in range(extra):
                again = zipfile.ZipInfo(f"c{number}.png")
                first = archive.infolist()[0]
                for name in ("compress_type", "header_offset", "file_size", "compress_size", "CRC"):
                    setattr(again, name, getattr(first, name))
                archive.filelist.append(again)
    assert reasons(outcome(whole, "zip", Limits())) == ["", ""]
    (record,) = outcome(overlapping, "zip", Limits())
    assert reasons([record]) == ["archive damaged"]
    assert "overlap" in record.location.detail


def test_a_server_whose_archive_never_ends_does_not_fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            return bytes(MIB)

    monkeypatch.setattr(remote, "FETCH_LIMIT", 5 * MIB)
    monkeypatch.setattr(remote, "_http_stream", lambda system, path: Endless())
    copy = io.BytesIO()
    with pytest.raises(Unreadable, match="file too large"):
        remote._fetch(None, "x", copy)
    assert copy.tell() < 10 * MIB


# In an ingest.


@pytest.mark.parametrize("workers", [0, 1])
def test_an_ingest_goes_on_after_archives_that_ask_for_too_much(workers: int, tmp_path: Path) -> None:
    crawl = tmp_path / "crawl"
    crawl.mkdir()
    for number in range(3):
        noise(number).save(crawl / f"good{number}.png")
    sound = kd3.ingest(crawl, tmp_path / "sound", image_size=16, workers=0)
    slow_pickle(crawl / "b.pkl")
    packed_tar(crawl / "c.tgz", {f"{number}.png": 2 * MIB for number in range(9)})
    with zipfile.ZipFile(crawl / "d.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("huge.png", bytes(30 * MIB))
    pool = kd3.ingest(crawl, tmp_path / "pool", image_size=16, workers=workers, max_seconds=2, max_unpacked=10 * MIB)
    assert pool.content_hash == sound.content_hash
    rejected = pool.manifest.counts.rejected
    assert rejected["took too long"] == 1
    assert rejected["file too large"] == 2


def test_archives_share_a_process_that_ends_when_nobody_wants_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart._stop_all()
    images = pictures(6)
    for number in range(3):
        (tmp_path / str(number)).mkdir()
    place = [Path(KINDS["npz"](tmp_path / str(number), images, files_of(images))) for number in range(3)]
    started = []
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: (started.append(start(*a, **k)), started[-1])[1])
    for path in place:
        assert len(outcome(path, "npz", Limits())) == 7  # with the labels
    assert len(started) == 1
    left: Iterator[Record] = iter(contents(Archive("npz", str(place[0]), "crawl", "a/"), Limits()))
    next(left)
    left.close()  # type: ignore[attr-defined]
    assert started[0].poll() is not None
    assert len(list(contents(Archive("npz", str(place[0]), "crawl", "a/"), Limits(), at_most=2))) == 2


def test_bytes_that_wait_for_workers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "BYTES_AHEAD", 4 * MIB)
    monkeypatch.setattr(decoding, "CHUNK_BYTES", MIB)
    drawn = 0

    def records() -> Iterator[Record]:
        nonlocal drawn
        for number in range(40):
            drawn += 1
            yield Record("crawl", str(number), InMemory(bytes(2 * MIB)))

    most = 0
    for done, _ in enumerate(decoding.decode_records(records(), DecodeSettings(16), workers=2, wary=True), 1):
        most = max(most, drawn - done)
    assert done == 40
    assert most <= 5


# Images inside images.


def png(side: int) -> bytes:
    return encoded(Image.new("RGB", (side, side), (10, 200, 30)))


def ico(inner: bytes) -> bytes:
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inner), 22) + inner


def icns(inner: bytes) -> bytes:
    return b"icns" + struct.pack(">I", 16 + len(inner)) + b"ic07" + struct.pack(">I", 8 + len(inner)) + inner


def blp(side: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (side, side), (10, 200, 30)).save(data, "JPEG")
    inner = data.getvalue()
    offsets = [28 + 128 + 4, *[0] * 15]
    head = b"BLP1" + struct.pack("<iIiiii", 0, 0, 16, 16, 4, 0)
    return head + struct.pack("<16I", *offsets) + struct.pack("<16I", len(inner), *[0] * 15) + bytes(4) + inner


@pytest.mark.parametrize(
    "make", [lambda side: ico(png(side)), lambda side: icns(png(side)), blp], ids=["ico", "icns", "blp"]
)
def test_an_image_inside_a_file_is_held_to_the_limit_of_pixels_too(make: Callable[[int], bytes]) -> None:
    settings = DecodeSettings(16, max_pixels=256 * 256, min_side=1)
    large = decode(make(700), settings)
    assert isinstance(large, Rejected)
    assert large.reason == "too many pixels", large.detail
    assert isinstance(decode(make(128), settings), Decoded)


def test_a_size_at_the_limit_is_taken_and_one_beyond_reported() -> None:
    data = png(101)
    for limit, taken in ((101 * 101, True), (101 * 101 - 1, False)):
        found = decode(data, DecodeSettings(16, max_pixels=limit))
        assert isinstance(found, Decoded) == taken
        if not taken:
            assert isinstance(found, Rejected)
            assert found.detail == "101 x 101, more than 10,200"
