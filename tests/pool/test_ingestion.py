"""Ingest: the same crawl gives the same pool, despite interruptions."""

import csv
import glob
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pool_pictures import encoded, folder_of, noise, some_files, tar_of, zip_of

import kd3
from kd3.config.pool_commands import IngestConfig
from kd3.pool import ImagePool, ingestion
from kd3.pool.ingest_state import DATABASE
from kd3.pool.ingestion import ingest_with
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import exclusive

LEFT = {"manifest.json", "index.parquet", "rejected.csv", "duplicates.csv", "images-00000.bin"}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def odd_rows() -> list[dict[str, str]]:
    place = Path(os.environ.get("KD3_SHARED", Path(__file__).parents[3] / "shared")) / "data/odd/EXPECTED.csv"
    return rows(place) if place.is_file() else []


@pytest.fixture(scope="module")
def odd(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> ImagePool:
    return kd3.ingest(shared_data / "odd", tmp_path_factory.mktemp("odd") / "pool", image_size=32)


@pytest.mark.parametrize("row", odd_rows(), ids=lambda row: row["file"])
def test_odd_files_meet_their_expected_fate(odd: ImagePool, row: dict[str, str]) -> None:
    assert odd.path
    key, expected, note = row["file"], row["expected"], row["note"]
    kept = key in odd.index().column("key").to_pylist()
    rejected = {r["key"]: r["reason"] for r in rows(odd.path / "rejected.csv")}
    duplicates = {r["key"]: r["duplicate_of_key"] for r in rows(odd.path / "duplicates.csv")}
    if expected.startswith("kept or"):
        assert kept or key in rejected  # by our rule no name without an extension is skipped
    elif expected == "kept":
        assert kept
    elif expected.startswith("duplicate of "):
        assert duplicates[key] == expected.removeprefix("duplicate of ")
    elif expected == "rejected":
        assert note.startswith(rejected[key])
    elif expected.startswith("rejected"):
        assert not kept
    else:
        pytest.fail(f"no test for the fate {expected!r}")


def test_every_odd_file_is_counted_once(odd: ImagePool, shared_data: Path) -> None:
    counts = odd.manifest.counts
    files = sum(path.is_file() for path in (shared_data / "odd").rglob("*"))
    assert counts.kept + counts.duplicates + sum(counts.rejected.values()) + counts.skipped == files


def test_shared_shards_are_ingested_and_sound(shared_data: Path, tmp_path: Path) -> None:
    pool = kd3.ingest(shared_data / "crawl/{00000..00000}.tar", tmp_path / "pool", image_size=32)
    assert (len(pool), pool.verify()) == (1250, [])


def test_folder_tar_and_zip_give_the_same_pool(tmp_path: Path) -> None:
    files = dict(sorted((some_files(20) | {"9.txt": b"caption", "8.jpg": b"junk"}).items()))
    sources = [
        folder_of(tmp_path / "folder", files),
        tar_of(tmp_path / "a.tar", files),
        tar_of(tmp_path / "a.tar.gz", files, "w:gz"),
        zip_of(tmp_path / "a.zip", files),
    ]
    pools = [kd3.ingest(source, tmp_path / f"pool{n}", image_size=16) for n, source in enumerate(sources)]
    assert len({pool.content_hash for pool in pools}) == 1
    for pool in pools:
        assert (pool.manifest.counts.skipped, pool.manifest.counts.rejected) == (1, {"not an image": 1})
        assert {path.name for path in Path(str(pool.path)).iterdir()} == LEFT


def test_workers_do_not_show(tmp_path: Path) -> None:
    crawl = folder_of(tmp_path / "crawl", some_files(300))
    pools = [kd3.ingest(crawl, tmp_path / str(workers), image_size=16, workers=workers) for workers in (0, 1, 2)]
    assert len({pool.content_hash for pool in pools}) == 1
    for pool in pools[1:]:
        assert pool.index().equals(pools[0].index())


def test_duplicates_are_dropped_and_the_plainest_name_kept(tmp_path: Path) -> None:
    data = encoded(noise(1))
    crawl = folder_of(tmp_path / "crawl", {"a_copy.png": data, "b.png": data, "c/b.png": data})
    pool = kd3.ingest(crawl, tmp_path / "pool", image_size=16)
    assert pool.index().column("key").to_pylist() == ["b.png"]
    listed = {row["key"]: row["duplicate_of_key"] for row in rows(tmp_path / "pool/duplicates.csv")}
    assert listed == {"a_copy.png": "b.png", "c/b.png": "b.png"}


SLOW_INGEST = """
import sys, time
from kd3.config.pool_commands import IngestConfig
from kd3.pool import ingestion, decoding
ingestion.COMMIT_FILES = 7
read = decoding.read_and_decode
def slowly(record, settings):
    time.sleep(0.01)
    return read(record, settings)
decoding.read_and_decode = slowly
config = IngestConfig(sources=[sys.argv[1]], out=sys.argv[2], image_size=16, workers=0)
ingestion.ingest_with(config, part_bytes=20 * 768)
"""


@pytest.mark.parametrize("seconds", [0.0, 0.4])
def test_killed_ingest_goes_on_to_the_same_pool(tmp_path: Path, seconds: float) -> None:
    files = some_files(120)
    files |= {"0/dup.png": files["0/00003.png"], "2/zz.png": files["1/00001.png"], "1/junk.png": b"junk"}
    crawl = folder_of(tmp_path / "crawl", files)
    out = tmp_path / "pool"
    process = subprocess.Popen([sys.executable, "-c", SLOW_INGEST, str(crawl), str(out)], stderr=subprocess.DEVNULL)
    while not (out / "images-00000.bin").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "manifest.json").exists()
    with (out / "images-00000.bin").open("ab") as handle:
        handle.write(b"torn")  # bytes that were on their way
    config = IngestConfig(sources=[str(crawl)], out=str(out), image_size=16, workers=0)
    resumed, whole = ingest_with(config), kd3.ingest(crawl, tmp_path / "whole", image_size=16)
    assert resumed.content_hash == whole.content_hash
    assert resumed.verify() == []
    assert resumed.index().equals(whole.index())
    assert resumed.manifest.counts == whole.manifest.counts
    for name in ("rejected.csv", "duplicates.csv"):
        assert (out / name).read_text() == (tmp_path / "whole" / name).read_text()


@pytest.fixture
def unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ingest of 20 files that was interrupted after 12 of them were committed."""
    crawl = folder_of(tmp_path / "crawl", some_files(20))
    take, taken = ingestion._take, iter(range(15))

    def interrupted(outcome: object, state: object) -> None:
        if next(taken, None) is None:
            raise KeyboardInterrupt
        take(outcome, state)  # type: ignore[arg-type]

    monkeypatch.setattr(ingestion, "_take", interrupted)
    monkeypatch.setattr(ingestion, "COMMIT_FILES", 12)
    with pytest.raises(KeyboardInterrupt):
        kd3.ingest(crawl, tmp_path / "pool", image_size=16)
    monkeypatch.undo()
    return tmp_path / "pool"


@pytest.mark.parametrize("image_size", [8, 32])
def test_other_settings_leave_an_unfinished_pool_as_it_is(unfinished: Path, image_size: int) -> None:
    before = (unfinished / "images-00000.bin").read_bytes()
    with pytest.raises(KD3Error, match=f"begun with image_size = 16, not {image_size}"):
        kd3.ingest(unfinished.parent / "crawl", unfinished, image_size=image_size)
    assert (unfinished / "images-00000.bin").read_bytes() == before
    assert len(kd3.ingest(unfinished.parent / "crawl", unfinished, image_size=16)) == 20


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_unfinished_pool_that_lost_pixels_is_refused(unfinished: Path, damage: str) -> None:
    part = unfinished / "images-00000.bin"
    part.unlink() if damage == "missing" else os.truncate(part, 100)
    with pytest.raises(KD3Error, match="missing or shorter than recorded"):
        kd3.ingest(unfinished.parent / "crawl", unfinished, image_size=16)


def test_finished_pool_is_left_alone_and_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crawl = folder_of(tmp_path / "crawl", some_files(3))
    first = kd3.ingest(crawl, tmp_path / "pool", image_size=16)
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "pool").iterdir()}
    (tmp_path / "pool" / DATABASE).touch()  # killed right after the manifest was written
    second = kd3.ingest(crawl, tmp_path / "pool", image_size=16)
    assert "nothing to do" in capsys.readouterr().err
    assert second.content_hash == first.content_hash
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "pool").iterdir()} == written
    assert set(written) == LEFT


def test_finished_pool_of_other_settings_is_refused_with_both_values(tmp_path: Path) -> None:
    crawl = folder_of(tmp_path / "crawl", some_files(3))
    kd3.ingest(crawl, tmp_path / "pool", image_size=16)
    with pytest.raises(KD3Error, match="begun with fit = 'crop', not 'squash'"):
        kd3.ingest(crawl, tmp_path / "pool", image_size=16, fit="squash")


def test_foreign_folder_is_refused_and_nothing_written(tmp_path: Path) -> None:
    crawl = folder_of(tmp_path / "crawl", some_files(3))
    folder_of(tmp_path / "mine", {"thesis.tex": b"x"})
    with pytest.raises(KD3Error, match="not empty and holds no pool"):
        kd3.ingest(crawl, tmp_path / "mine", image_size=16)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    with pytest.raises(KD3Error, match="is a file"):
        kd3.ingest(crawl, tmp_path / "mine/thesis.tex", image_size=16)


def test_output_inside_a_source_is_refused(tmp_path: Path) -> None:
    crawl = folder_of(tmp_path / "crawl", some_files(3))
    with pytest.raises(KD3Error, match="lies in the source"):
        kd3.ingest(crawl, crawl / "pool", image_size=16)
    assert not (crawl / "pool").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.jpg": b"junk", "b.jpg": b""}, r"none of the 2 files .*1 empty, 1 not an image; such as a.jpg"),
        ({"a.json": b"{}"}, "holds no file that could be an image"),
        ({}, "holds no file that could be an image"),
    ],
)
def test_crawl_without_images_leaves_nothing_behind(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    (tmp_path / "crawl").mkdir()
    with pytest.raises(KD3Error, match=message):
        kd3.ingest(folder_of(tmp_path / "crawl", files), tmp_path / "deep/er/pool", image_size=16)
    assert [path.name for path in tmp_path.iterdir()] == ["crawl"]


def test_missing_source_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(KD3Error, match="does not exist"):
        kd3.ingest(tmp_path / "absent", tmp_path / "pool", image_size=16)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("setting", [{"image_size": 7}, {"image_size": 2000}, {"min_side": 0}, {"fit": "stretch"}])
def test_setting_out_of_range_is_reported(tmp_path: Path, setting: dict[str, object]) -> None:
    with pytest.raises(KD3Error, match=next(iter(setting))):
        kd3.ingest(tmp_path, tmp_path / "pool", **({"image_size": 16} | setting))  # type: ignore[arg-type]


def test_second_process_is_refused(tmp_path: Path) -> None:
    crawl = folder_of(tmp_path / "crawl", some_files(3))
    (tmp_path / "pool").mkdir()
    with exclusive(tmp_path / "pool/.lock", what="pool"), pytest.raises(KD3Error, match="another process"):
        kd3.ingest(crawl, tmp_path / "pool", image_size=16)
    assert len(kd3.ingest(crawl, tmp_path / "pool", image_size=16)) == 3


def test_full_disk_is_told_and_work_goes_on_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crawl = folder_of(tmp_path / "crawl", some_files(3))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kd3.pool.pool_files.PackedImages.append", full)
    with pytest.raises(KD3Error, match=r"cannot write pool .*No space left"):
        kd3.ingest(crawl, tmp_path / "pool", image_size=16)
    monkeypatch.undo()
    assert len(kd3.ingest(crawl, tmp_path / "pool", image_size=16)) == 3


def test_limit_counts_files(tmp_path: Path) -> None:
    crawl = folder_of(tmp_path / "crawl", some_files(9))
    assert len(kd3.ingest(crawl, tmp_path / "pool", image_size=16, limit=4)) == 4


def test_pool_holds_the_pixels_of_the_files(tmp_path: Path) -> None:
    crawl = folder_of(tmp_path / "crawl", {f"{n}.png": encoded(noise(n, 16, 16)) for n in range(4)})
    pool = kd3.ingest(crawl, tmp_path / "pool", image_size=16)
    expected = np.stack([np.asarray(noise(n, 16, 16)).transpose(2, 0, 1) for n in range(4)])
    np.testing.assert_array_equal(pool.read(slice(None)), expected)


def test_summary_tells_rejections_by_reason(tmp_path: Path) -> None:
    crawl = folder_of(tmp_path / "crawl", some_files(3) | {"a.jpg": b"junk", "b.jpg": b"", "c.txt": b"x"})
    text = kd3.ingest(crawl, tmp_path / "pool", image_size=16).summary()
    for part in ("kept        3", "rejected    2", "not an image", "empty", "rejected.csv", "skipped     1"):
        assert part in text


def test_sources_are_looked_for_once_however_many_ask(crawl, tmp_path, monkeypatch):
    from kd3.sources.locations import Expanded
    from kd3.sources.locations import expand as module_function

    asked = []
    real = glob.glob
    monkeypatch.setattr("glob.glob", lambda *a, **k: asked.append(a[0]) or real(*a, **k))
    pattern = str(crawl / "0*.png")
    kd3.ingest(pattern, tmp_path / "pool", image_size=16, workers=0, limit=5)
    assert asked == [pattern]
    found = module_function([pattern])
    assert isinstance(found, Expanded)
    assert module_function(found) is found
