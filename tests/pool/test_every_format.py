"""The same pictures from every kind of source give the same pool."""

import json
import pickle
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pool_pictures import encoded, folder_of, noise, tar_of, zip_of

import kd3
from kd3.pool.sources import counts, records

COUNT, SIDE = 500, 16


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """(N, H, W, 3) uint8."""
    return np.stack([np.asarray(noise(seed, SIDE, SIDE)) for seed in range(COUNT)])


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {f"{seed:05d}.png": encoded(noise(seed, SIDE, SIDE)) for seed in range(COUNT)}


@pytest.fixture(scope="module")
def expected(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("expected")
    return pool_of(folder_of(place / "crawl", files), place / "pool").content_hash


def pool_of(source: object, out: Path, **settings: object) -> kd3.ImagePool:
    return kd3.ingest(source, out, image_size=SIDE, workers=0, **settings)


def planes(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def img2dataset_tar(path: Path, files: dict[str, bytes]) -> Path:
    members: dict[str, bytes] = {}
    for place, data in enumerate(files.values()):
        members[f"{place:09d}.json"] = json.dumps({"status": "success"}).encode()
        members[f"{place:09d}.png"] = data
        members[f"{place:09d}.txt"] = b"a caption"
    return tar_of(path, members)


def parquet(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=97)
    return path


def arrow(path: Path, files: dict[str, bytes], writer: object) -> Path:
    table = pa.table({"image": [{"bytes": data, "path": name} for name, data in files.items()]})
    with pa.OSFile(str(path), "wb") as sink, writer(sink, table.schema) as stream:
        stream.write_table(table, max_chunksize=100)
    return path


def list_of(path: Path, files: dict[str, bytes], header: str = "") -> Path:
    folder_of(path.parent / "images", files)
    path.write_text(header + "".join(f"images/{name}\n" for name in files))
    return path


def saved(path: Path, save: object, *args: object, **arrays: object) -> Path:
    save(path, *args, **arrays)
    return path


def batch(path: Path, content: object, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


SOURCES = {
    "tar": lambda place, files, pixels: tar_of(place / "a.tar", files),
    "compressed tar": lambda place, files, pixels: tar_of(place / "a.tar.gz", files, "w:gz"),
    "tar of img2dataset": lambda place, files, pixels: img2dataset_tar(place / "00000.tar", files),
    "zip": lambda place, files, pixels: zip_of(place / "a.zip", files),
    "parquet of bytes": lambda place, files, pixels: parquet(
        place / "a.parquet", key=[*files], jpg=[*files.values()], status=["success"] * COUNT
    ),
    "parquet of structs": lambda place, files, pixels: parquet(
        place / "train-00000-of-00001.parquet",
        image=[{"bytes": data, "path": name} for name, data in files.items()],
        label=list(range(COUNT)),
    ),
    "arrow stream (save_to_disk)": lambda place, files, pixels: arrow(
        place / "data-00000-of-00001.arrow", files, pa.ipc.new_stream
    ),
    "arrow file": lambda place, files, pixels: arrow(place / "a.arrow", files, pa.ipc.new_file),
    "npy": lambda place, files, pixels: saved(place / "a.npy", np.save, pixels),
    "npy, channels first": lambda place, files, pixels: saved(place / "a.npy", np.save, planes(pixels)),
    "npz": lambda place, files, pixels: saved(
        place / "a.npz", np.savez, images=pixels, labels=np.arange(COUNT), names=np.array(["x"] * COUNT)
    ),
    "compressed npz": lambda place, files, pixels: saved(
        place / "a.npz", np.savez_compressed, train=pixels[:300], test=planes(pixels[300:])
    ),
    "CIFAR batch": lambda place, files, pixels: batch(
        place / "data_batch_1", {b"data": planes(pixels).reshape(COUNT, -1), b"labels": [0] * COUNT}
    ),
    "ImageNet-32 batch": lambda place, files, pixels: batch(
        place / "train_data_batch_1",
        {"data": planes(pixels).reshape(COUNT, -1), "labels": [1] * COUNT, "mean": pixels.mean(0)},
        protocol=4,
    ),
    "list of paths": lambda place, files, pixels: list_of(place / "list.txt", files),
    "list as CSV": lambda place, files, pixels: list_of(place / "list.csv", files, header="path\n"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_the_same_images_from_every_format_give_the_same_pool(kind, pixels, files, expected, tmp_path):
    source = SOURCES[kind](tmp_path, files, pixels)
    pool = pool_of(source, tmp_path / "pool")
    assert (len(pool), pool.content_hash) == (COUNT, expected)
    assert not pool.manifest.counts.rejected


@pytest.mark.parametrize("kind", [kind for kind in SOURCES if "list" not in kind])
def test_and_so_they_do_in_a_folder_among_others(kind, pixels, files, expected, tmp_path):
    (tmp_path / "crawl").mkdir()
    SOURCES[kind](tmp_path / "crawl", files, pixels)
    parquet(tmp_path / "crawl" / "metadata.parquet", url=["https://a"], width=[3])  # as img2dataset leaves it there
    pool = pool_of(tmp_path / "crawl", tmp_path / "pool")
    assert (len(pool), pool.content_hash) == (COUNT, expected)
    assert pool.manifest.counts.skipped >= 1


@pytest.mark.parametrize("kind", SOURCES)
def test_an_ingest_of_any_kind_goes_on_where_it_was_stopped(kind, pixels, files, expected, tmp_path, monkeypatch):
    from kd3.pool import ingestion

    source = SOURCES[kind](tmp_path, files, pixels)
    taken = ingestion._take

    def take(outcome, state):
        if state.files == 205:
            state.commit()
            raise KeyboardInterrupt
        taken(outcome, state)

    monkeypatch.setattr(ingestion, "_take", take)
    with pytest.raises(KeyboardInterrupt):
        pool_of(source, tmp_path / "pool")
    monkeypatch.setattr(ingestion, "_take", taken)
    assert pool_of(source, tmp_path / "pool").content_hash == expected


@pytest.mark.parametrize("kind", [kind for kind in SOURCES if "list" not in kind])
def test_counting_agrees_with_listing_or_gives_up(kind, pixels, files, tmp_path):
    source = [str(SOURCES[kind](tmp_path, files, pixels))]
    counted = list(counts(source))
    assert None in counted or sum(counted) == len(list(records(source)))


@pytest.mark.parametrize("kind", [kind for kind in SOURCES if "list" not in kind])
def test_and_so_they_do_from_elsewhere(kind, pixels, files, expected, tmp_path):
    local = SOURCES[kind](tmp_path, files, pixels)
    place = f"memory://{tmp_path.name}/{local.name}"
    with fsspec.open(place, "wb") as handle:
        handle.write(local.read_bytes())
    pool = pool_of(place, tmp_path / "pool")
    assert (len(pool), pool.content_hash) == (COUNT, expected)


def test_keys_tell_where_an_image_came_from(tmp_path, pixels, files):
    few = dict(list(files.items())[:2])
    found = {
        "parquet": parquet(tmp_path / "a.parquet", key=[*few], jpg=[*few.values()]),
        "npz": saved(tmp_path / "b.npz", np.savez, train=pixels[:2]),
        "batch": batch(tmp_path / "data_batch_2", {b"data": planes(pixels[:1]).reshape(1, -1)}),
    }
    assert {kind: [record.key for record in records([str(path)])] for kind, path in found.items()} == {
        "parquet": ["00000.png", "00001.png"],
        "npz": ["train/000000000", "train/000000001"],
        "batch": ["000000000"],
    }
    assert [record.key for record in records([str(tmp_path)])][2:4] == [
        "b.npz/train/000000000",
        "b.npz/train/000000001",
    ]
