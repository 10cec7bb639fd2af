"""The same images from every kind of source give the same pool, also remotely."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from pool_containers import KINDS, WebServer, pictures, web_server, written

import kd3
from kd3.pool import ImagePool
from kd3.sources.finding import counts, list_records, records

FOLDERS = {"folder", "save_to_disk", "CIFAR"}


class Scene:
    """The same images as every kind of source, and the pool of the plainest."""

    def __init__(self, base: Path, count: int) -> None:
        self.base, self.count = base, count
        self.images = pictures(count)
        self.places = {name: written(name, base / str(number), self.images) for number, name in enumerate(KINDS)}
        self.expected = kd3.ingest(self.places["folder"], base / "pool", image_size=32, workers=0)

    def check(self, pool: ImagePool) -> None:
        np.testing.assert_array_equal(pool.read(slice(None)), self.images.transpose(0, 3, 1, 2))
        assert pool.content_hash == self.expected.content_hash
        counts = pool.manifest.counts
        assert (counts.kept, counts.duplicates, counts.rejected) == (self.count, 0, {})


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("kinds"), 500)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("few"), 40)


@pytest.mark.parametrize("kind", KINDS)
def test_same_images_give_the_same_pool(kind: str, scene: Scene, tmp_path: Path) -> None:
    pool = kd3.ingest(scene.places[kind], tmp_path / "pool", image_size=32, workers=0)
    scene.check(pool)
    names = list(zip(*(pool.index().column(name).to_pylist() for name in ("source", "key")), strict=True))
    assert len(set(names)) == scene.count
    assert {source for source, _ in names} == {str(scene.places[kind])}


@pytest.mark.parametrize("kind", KINDS)
def test_counting_agrees_with_listing(kind: str, small: Scene) -> None:
    found = list(counts([str(small.places[kind])]))
    listed = len(list(records([str(small.places[kind])])))
    assert found == [None] if kind == "tar.gz" else sum(count or 0 for count in found) == listed


@pytest.mark.parametrize("kind", ["parquet of structs", "npy", "CIFAR"])
def test_worker_processes_do_not_show(kind: str, scene: Scene, tmp_path: Path) -> None:
    scene.check(kd3.ingest(scene.places[kind], tmp_path / "pool", image_size=32, workers=2))


@pytest.fixture(scope="module")
def memory(small: Scene) -> Iterator[str]:
    """The places of all kinds in fsspec's memory."""
    system = fsspec.filesystem("memory")
    for path in small.base.rglob("*"):
        if path.is_file():
            system.pipe_file(f"/kinds/{path.relative_to(small.base)}", path.read_bytes())
    yield "memory://kinds"
    system.rm("/kinds", recursive=True)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_of_fsspec_gives_the_same_pool(kind: str, memory: str, small: Scene, tmp_path: Path) -> None:
    source = f"{memory}/{small.places[kind].relative_to(small.base)}"
    pool = kd3.ingest(source, tmp_path / "pool", image_size=32, workers=0)
    small.check(pool)
    assert set(pool.index().column("source").to_pylist()) == {source}


@pytest.fixture(scope="module", params=[True, False], ids=["ranges", "whole files"])
def server(request: pytest.FixtureRequest, small: Scene) -> Iterator[WebServer]:
    with web_server(small.base, ranges=request.param) as server:
        yield server


@pytest.mark.parametrize("kind", KINDS)
def test_web_server_gives_the_same_pool(kind: str, server: WebServer, small: Scene, tmp_path: Path) -> None:
    source = f"{server.url}/{small.places[kind].relative_to(small.base)}" + ("/" if kind in FOLDERS else "")
    small.check(kd3.ingest(source, tmp_path / "pool", image_size=32, workers=0))


def test_keys_lead_back_to_the_image(scene: Scene) -> None:
    def keys(kind: str) -> list[str]:
        return [record.key for record in list_records([str(scene.places[kind])])]

    for kind in ("parquet of structs", "npy", "npz of ImageNet", "CIFAR, binary", "ImageNet batch"):
        assert keys(kind)[:3] == ["0", "1", "2"], kind
    assert keys("CIFAR")[99:102] == ["data_batch_1/99", "data_batch_2/0", "data_batch_2/1"]
    assert keys("save_to_disk")[0] == "data-00000-of-00001.arrow/0"
    assert keys("list.lst")[0] == "images/00000.png"
