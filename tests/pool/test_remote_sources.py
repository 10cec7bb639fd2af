"""Crawls that lie elsewhere: over HTTP, in fsspec's memory; what cannot be had is counted, secrets are not kept."""

import csv
import functools
import http.server
import threading
from pathlib import Path

import fsspec
import pytest
from pool_pictures import encoded, folder_of, noise, some_files, tar_of, zip_of

import kd3
from kd3.errors import KD3Error
from kd3.pool.sources import expand, remote


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder without ranges, as the simplest servers do; counts what is asked, and fails on demand."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        self.failures: dict[str, int] = {}
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        path = self.path.partition("?")[0]
        self.server.asked.append(self.path)
        if self.server.failures.get(path, 0):
            self.server.failures[path] -= 1
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    (tmp_path / "served").mkdir()
    with Server(tmp_path / "served") as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def rejected(pool: Path) -> list[tuple[str, str]]:
    with (pool / "rejected.csv").open(newline="", encoding="utf-8") as handle:
        return [(row["reason"], row["detail"]) for row in csv.DictReader(handle)]


def test_archives_and_single_images_over_http_give_the_pool_of_the_local_ones(server, tmp_path):
    served, files = tmp_path / "served", some_files(6)
    tar_of(served / "00000.tar", files)
    zip_of(served / "00001.zip", {"a.png": encoded(noise(50))})
    folder_of(served, {"one.png": encoded(noise(51))})
    names = ["00000.tar", "00001.zip", "one.png"]
    local = kd3.ingest([served / name for name in names], tmp_path / "local", image_size=16)
    pool = kd3.ingest([f"{server.url}/{name}" for name in names], tmp_path / "pool", image_size=16)
    assert (len(pool), pool.content_hash) == (8, local.content_hash)
    assert pool.index()["source"].to_pylist()[0] == f"{server.url}/00000.tar"


def test_braces_stand_for_urls_too(server, tmp_path):
    for shard in range(3):
        tar_of(tmp_path / f"served/0000{shard}.tar", {f"{shard}.png": encoded(noise(shard))})
    source = f"{server.url}/{{00000..00002}}.tar"
    assert len(kd3.ingest(source, tmp_path / "pool", image_size=16)) == 3


def test_a_folder_elsewhere_is_walked_in_order_with_its_archives_and_without_its_sidecars(tmp_path):
    system = fsspec.filesystem("memory")
    root = f"/{tmp_path.name}/crawl"
    tar = tar_of(tmp_path / "b.tar", {"x.png": encoded(noise(1))}).read_bytes()
    for name, data in {"c/z.png": encoded(noise(2)), "b.tar": tar, "a.png": encoded(noise(3)), "a.json": b"{}"}.items():
        system.pipe(f"{root}/{name}", data)
    pool = kd3.ingest(f"memory:/{root}", tmp_path / "pool", image_size=16)
    assert pool.index()["key"].to_pylist() == ["a.png", "b.tar/x.png", "c/z.png"]
    assert pool.manifest.counts.skipped == 1
    assert expand([f"memory:/{root}/*.tar"]) == [f"memory://{root}/b.tar"]


def test_a_list_of_urls_is_fetched(server, tmp_path):
    folder_of(tmp_path / "served", {f"{n}.png": encoded(noise(n)) for n in range(3)})
    (tmp_path / "urls.txt").write_text("".join(f"{server.url}/{n}.png\n" for n in (0, 1, 2, 7)))
    pool = kd3.ingest(tmp_path / "urls.txt", tmp_path / "pool", image_size=16)
    assert len(pool) == 3
    assert rejected(tmp_path / "pool") == [("not downloaded", f"FileNotFoundError: {server.url}/7.png")]


def test_errors_of_a_moment_are_tried_again_and_those_that_stay_cost_one_image(server, tmp_path):
    folder_of(tmp_path / "served", {f"{n}.png": encoded(noise(n)) for n in range(2)})
    (tmp_path / "urls.txt").write_text(f"{server.url}/0.png\n{server.url}/1.png\n")
    server.failures = {"/0.png": 2, "/1.png": 99}
    pool = kd3.ingest(tmp_path / "urls.txt", tmp_path / "pool", image_size=16, workers=0)
    assert len(pool) == 1
    ((reason, detail),) = rejected(tmp_path / "pool")
    assert reason == "not downloaded"
    assert detail.endswith(f"after 4 attempts: {server.url}/1.png")


def test_a_place_that_is_not_there_is_told_before_anything_is_made(server, tmp_path):
    with pytest.raises(KD3Error, match=r"source http://127.0.0.1:\d+/absent.tar does not exist"):
        kd3.ingest(f"{server.url}/absent.tar", tmp_path / "pool", image_size=16)
    with pytest.raises(KD3Error, match=r"no file matches memory://nowhere/\*.tar"):
        kd3.ingest("memory://nowhere/*.tar", tmp_path / "pool", image_size=16)
    assert not (tmp_path / "pool").exists()


def test_a_server_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    with pytest.raises(KD3Error, match=r"source http://127.0.0.1:9/a.tar (cannot be reached|does not exist)"):
        kd3.ingest("http://127.0.0.1:9/a.tar", tmp_path / "pool", image_size=16)


def test_an_unknown_kind_of_place_and_a_missing_library_are_told(tmp_path, monkeypatch):
    with pytest.raises(KD3Error, match="Protocol not known: nowhere"):
        kd3.ingest("nowhere://a/b.tar", tmp_path / "pool", image_size=16)

    def url_to_fs(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", url_to_fs)
    with pytest.raises(KD3Error, match="s3:// needs a library that is not installed: pip install s3fs"):
        kd3.ingest("s3://bucket/a.tar", tmp_path / "pool", image_size=16)


def test_secrets_in_a_url_are_used_and_never_written_down(server, tmp_path):
    tar_of(tmp_path / "served/a.tar", some_files(2))
    url = f"{server.url}/a.tar?part=1&X-Amz-Signature=geheim"
    kd3.ingest(url, tmp_path / "pool", image_size=16)
    assert any("geheim" in asked for asked in server.asked)
    for path in (tmp_path / "pool").rglob("*"):
        assert b"geheim" not in path.read_bytes(), path
    assert remote.without_secrets("https://me:pw@host/a?b=1") == "https://host/a?b=1"


def test_copies_of_archives_are_removed(server, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    tar_of(tmp_path / "served/a.tar", some_files(2))
    kd3.ingest(f"{server.url}/a.tar", tmp_path / "pool", image_size=16)
    assert not list((tmp_path / "temporary").iterdir())
