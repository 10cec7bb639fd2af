"""A pool reads like an array, in any process, and reports damage."""

import json
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_pictures import folder_of, some_files

from kd3.config.pool_commands import IngestConfig
from kd3.pool import ImagePool
from kd3.pool.ingestion import ingest_with
from kd3.runtime.errors import KD3Error

SIZE = 8
IMAGE_BYTES = 3 * SIZE * SIZE


@pytest.fixture
def pool(tmp_path: Path) -> ImagePool:
    """Ten images in parts of three."""
    crawl = folder_of(tmp_path / "crawl", some_files(10))
    config = IngestConfig(sources=[str(crawl)], out=str(tmp_path / "pool"), image_size=SIZE)
    return ingest_with(config, part_bytes=3 * IMAGE_BYTES)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImagePool, np.ndarray]:
    place = tmp_path_factory.mktemp("pool")
    crawl = folder_of(place / "crawl", some_files(10))
    config = IngestConfig(sources=[str(crawl)], out=str(place / "pool"), image_size=SIZE)
    pool = ingest_with(config, part_bytes=3 * IMAGE_BYTES)
    whole = np.concatenate([np.fromfile(place / "pool" / part.file, np.uint8) for part in pool.manifest.parts])
    return pool, whole.reshape(-1, 3, SIZE, SIZE)


@settings(deadline=None)
@given(positions=st.lists(st.integers(-10, 9)))
def test_read_is_indexing_of_the_whole(parts: tuple[ImagePool, np.ndarray], positions: list[int]) -> None:
    pool, whole = parts
    np.testing.assert_array_equal(pool.read(np.array(positions, dtype=np.int64)), whole[positions])


@settings(deadline=None)
@given(part=st.slices(10))
def test_read_takes_slices(parts: tuple[ImagePool, np.ndarray], part: slice) -> None:
    pool, whole = parts
    np.testing.assert_array_equal(pool.read(part), whole[part])


def test_part_size_does_not_show(parts: tuple[ImagePool, np.ndarray]) -> None:
    pool, whole = parts
    assert [part.images for part in pool.manifest.parts] == [3, 3, 3, 1]
    assert ImagePool.from_array(whole).content_hash == pool.content_hash
    assert (len(pool), pool[3].shape, pool.image_size) == (10, (3, SIZE, SIZE), SIZE)


@pytest.mark.parametrize("position", [10, -11])
def test_position_outside_is_an_index_error(pool: ImagePool, position: int) -> None:
    with pytest.raises(IndexError, match="of a pool of 10"):
        pool[position]


def test_mask_is_refused_rather_than_misread(pool: ImagePool) -> None:
    with pytest.raises(TypeError, match="integers"):
        pool.read(np.ones(10, dtype=bool))


def test_what_was_read_may_be_written(pool: ImagePool) -> None:
    images = pool.read(np.array([0]))
    images[:] = 0
    assert pool[0].any()


def test_pickled_pool_is_its_path(pool: ImagePool) -> None:
    data = pickle.dumps(pool)
    assert len(data) < 500
    np.testing.assert_array_equal(pickle.loads(data).read(slice(None)), pool.read(slice(None)))


def test_pickled_pool_in_memory_is_its_pixels() -> None:
    pool = ImagePool.from_array(np.arange(2 * IMAGE_BYTES, dtype=np.uint8).reshape(2, 3, SIZE, SIZE))
    assert pickle.loads(pickle.dumps(pool)).content_hash == pool.content_hash


def _sum(pool: ImagePool) -> int:
    return int(pool.read(slice(None)).sum())


def test_many_processes_read_at_once(pool: ImagePool) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as processes:
        assert processes.map(_sum, [pool] * 4) == [_sum(pool)] * 4


@pytest.mark.parametrize(
    "images", [np.zeros((1, 3, 8, 8)), np.zeros((1, 8, 8, 3), np.uint8), np.zeros((0, 3, 8, 8), np.uint8)]
)
def test_array_that_is_no_pool_is_refused(images: np.ndarray) -> None:
    with pytest.raises(KD3Error, match="must be uint8"):
        ImagePool.from_array(images)


def test_sound_pool_has_no_problems(pool: ImagePool) -> None:
    assert pool.verify() == []


def test_verify_names_the_image_with_a_flipped_byte(pool: ImagePool) -> None:
    assert pool.path
    path = pool.path / "images-00001.bin"
    data = bytearray(path.read_bytes())
    data[IMAGE_BYTES + 5] ^= 1
    path.write_bytes(data)
    (problem,) = pool.verify()
    assert "images-00001.bin: image 1 (pool position 4," in problem


def test_verify_names_a_part_that_vanished(pool: ImagePool) -> None:
    assert pool.path
    (pool.path / "images-00002.bin").unlink()
    assert pool.verify() == ["images-00002.bin is missing"]


def test_verify_names_a_damaged_index(pool: ImagePool) -> None:
    assert pool.path
    (pool.path / "index.parquet").write_bytes(b"PAR1 junk")
    (problem,) = pool.verify()
    assert problem.startswith("index.parquet cannot be read")


def test_verify_names_rows_that_are_missing_from_the_index(pool: ImagePool) -> None:
    import pyarrow.parquet

    assert pool.path
    pyarrow.parquet.write_table(pool.index().slice(0, 9), pool.path / "index.parquet")
    assert pool.verify() == ["index.parquet lists 9 images, the manifest 10"]


def test_verify_names_a_manifest_of_other_content(pool: ImagePool) -> None:
    assert pool.path
    edit(pool.path, content_hash="0" * 64)
    assert ImagePool.open(pool.path).verify() == ["index.parquet does not have the content hash of the manifest"]


def edit(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "format version 2; this kd3 reads up to 1"),
        ({"format": "other"}, "is not of the format kd3-pool"),
        ({"images": 0, "parts": []}, "is empty"),
        ({"images": 11}, "do not add up"),
        ({"images": "many"}, "is damaged: images"),
        ({"parts": [{"file": "../images-00000.bin", "images": 10}]}, "no name of a part"),
    ],
)
def test_manifest_that_cannot_be_used_is_reported(pool: ImagePool, changes: dict[str, object], message: str) -> None:
    assert pool.path
    edit(pool.path, **changes)
    with pytest.raises(KD3Error, match=message):
        ImagePool.open(pool.path)


def test_opening_tells_a_part_that_is_missing_or_short(pool: ImagePool) -> None:
    assert pool.path
    part = pool.path / "images-00003.bin"
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(KD3Error, match=r"images-00003.bin has 191 bytes, not 192"):
        ImagePool.open(pool.path)
    part.unlink()
    with pytest.raises(KD3Error, match=r"images-00003.bin is missing"):
        ImagePool.open(pool.path)


def test_folder_that_is_no_finished_pool_is_reported(tmp_path: Path) -> None:
    with pytest.raises(KD3Error, match="does not exist"):
        ImagePool.open(tmp_path / "absent")
    with pytest.raises(KD3Error, match="is not a pool"):
        ImagePool.open(tmp_path)
    (tmp_path / "ingest.sqlite").touch()
    with pytest.raises(KD3Error, match="run the same `kd3 ingest` command again"):
        ImagePool.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(KD3Error, match="cannot be read"):
        ImagePool.open(tmp_path)


def test_summary_tells_counts(pool: ImagePool) -> None:
    text = pool.summary()
    assert "10 images of 8 x 8" in text
    assert "kept        10" in text
