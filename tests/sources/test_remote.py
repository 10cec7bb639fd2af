"""Remote files: found, fetched with retries, and recorded without secrets."""

import csv
import io
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
from pool_containers import WebServer, list_of, npy_of, parquet_of, pictures, structs_of, web_server, written
from pool_pictures import encoded, folder_of, noise, some_files, tar_of, zip_of

import kd3
from kd3.sources.finding import records
from kd3.sources.locations import expand
from kd3.sources.record import FILE_LIMIT, Unreadable, Unusable
from kd3.sources.remote import Remote, opened_remote
from kd3.sources.tar import tar_members
from kd3.sources.trust import is_remote, trusting


@pytest.fixture(autouse=True)
def own_lists() -> Iterator[None]:
    """Lists may name the server of the tests, on this machine; `test_allowed.py` covers those that may not."""
    with trusting(entries=True):
        yield


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The recorded pauses between attempts, without waiting."""
    made: list[float] = []
    monkeypatch.setattr("kd3.sources.remote.time", SimpleNamespace(sleep=made.append))
    return made


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[WebServer]:
    folder = folder_of(tmp_path / "web", some_files(6))
    tar_of(folder / "a.tar", some_files(6))
    with web_server(folder) as server:
        yield server


def rejected(pool: Path) -> dict[str, tuple[str, str]]:
    with (pool / "rejected.csv").open(newline="", encoding="utf-8") as handle:
        return {row["key"]: (row["reason"], row["detail"]) for row in csv.DictReader(handle)}


def keys(*sources: str) -> list[str]:
    return [record.key for record in records(sources)]


# Finding.


def test_only_protocols_make_a_path_remote(tmp_path: Path) -> None:
    assert all(map(is_remote, ["s3://b/k", "hf://datasets/a/b", "memory://x", "simplecache::s3://b", "zip://a::x://y"]))
    assert not any(map(is_remote, ["a/b", "C:/x", "C://x", "a:b", "/x://y", "./s3://b", ""]))


def test_file_urls_are_paths(tmp_path: Path) -> None:
    path = npy_of(tmp_path / "a.npy", pictures(2))
    assert [(r.source, r.key) for r in records([f"file://{path}"])] == [(str(path), "0"), (str(path), "1")]


def test_remote_folders_globs_and_braces_are_sorted(memory: fsspec.AbstractFileSystem) -> None:
    for name in ("b/2.png", "b/10.png", "a.png", "b/c/x.json", ".hidden/y.png", "t1.tar", "t2.tar", "t10.tar"):
        memory.pipe_file(f"/crawl/{name}", tar_of_one(name) if name.endswith("tar") else b"x")
    for folder in ("memory://crawl", "memory://crawl/"):
        found = [(r.key, isinstance(r.location, Unusable)) for r in records([folder])]
        assert found == [
            (".hidden/y.png", True),
            ("a.png", False),
            ("b/10.png", False),
            ("b/2.png", False),
            ("b/c/x.json", True),
            ("t1.tar/t1.tar.png", False),
            ("t10.tar/t10.tar.png", False),
            ("t2.tar/t2.tar.png", False),
        ]
    assert expand(["memory://crawl/t*.tar"]) == [f"memory://crawl/t{n}.tar" for n in (1, 10, 2)]
    assert expand(["memory://crawl/t{1..2}.tar"]) == ["memory://crawl/t1.tar", "memory://crawl/t2.tar"]
    assert expand(["memory://*/b/?.png"]) == ["memory://crawl/b/2.png"]
    with pytest.raises(kd3.KD3Error, match=r"no file matches memory://crawl/\*\.zip"):
        expand(["memory://crawl/*.zip"])


def tar_of_one(name: str) -> bytes:
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo(f"{name}.png")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
    return buffer.getvalue()


def test_chained_urls_reach_into_archives(tmp_path: Path, memory: fsspec.AbstractFileSystem) -> None:
    files = some_files(4)
    memory.pipe_file("/a.zip", zip_of(tmp_path / "a.zip", files).read_bytes())
    assert keys("zip://0/::memory://a.zip") == ["00000.png", "00003.png"]
    assert keys("zip://*/*.png::memory://a.zip") == [name.rpartition("/")[2] for name in sorted(files)]
    (record,) = records(["zip://1/00001.png::memory://a.zip"])
    assert record.location.read() == files["1/00001.png"]


def test_odd_urls_cost_a_row_each_in_a_list_and_a_sentence_alone(
    tmp_path: Path, memory: fsspec.AbstractFileSystem, waits: list[float]
) -> None:
    folder_of(tmp_path, some_files(1))
    memory.pipe_file("/junk.zip", b"junk")
    odd = [
        "nosuch://x.png",
        "zip://a.png::memory://gone.zip",
        "zip://a.png::memory://junk.zip",
        "http://",
        "note:: see",
    ]
    source = list_of(tmp_path / "l.txt", ["0/00000.png", *odd])
    assert len(kd3.ingest(source, tmp_path / "pool", image_size=16, workers=0)) == 1
    assert {key: reason for key, (reason, _) in rejected(tmp_path / "pool").items()} == dict.fromkeys(
        odd, "unreachable"
    )
    for url in odd:
        with pytest.raises(kd3.KD3Error, match=r"source .* (cannot be read|does not exist)"):
            kd3.ingest(url, tmp_path / "other", image_size=16, workers=0)
    assert not (tmp_path / "other").exists()


def test_web_folders_are_walked_and_archives_known_behind_a_query(server: WebServer) -> None:
    assert keys(server.url) == keys(f"{server.url}/")
    assert keys(f"{server.url}/") == [*sorted(some_files(6)), *(f"a.tar/{name}" for name in some_files(6))]
    assert keys(f"{server.url}/a.tar?X-Amz-Signature=abc") == list(some_files(6))


class _Odd(BaseHTTPRequestHandler):
    """Answers that a server gives, some of which never end."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/x-tar" if "broken" in self.path else "text/html")
        if "broken" in self.path:
            self.send_header("Content-Length", "1000000")
        self.end_headers()
        try:
            if "endless" in self.path:
                while True:
                    self.wfile.write(b'<a href="0.png">' * 4096)
            if "slow" in self.path:
                for letter in b"<p>There are no links here.</p>":
                    self.wfile.write(bytes([letter]))
                    self.wfile.flush()
            if "branching" in self.path:
                self.wfile.write(b'<a href="one/"></a><a href="other/"></a><a href="0.png"></a>')
            self.wfile.write(b'<a href="more/"></a><a href="0.png"></a>' if "deep" in self.path else b"<p>")
        except OSError:
            pass  # the reader has had enough


@pytest.fixture
def odd() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Odd) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("path", ["", "/", "/slow/", "/pages/index/"])
def test_web_page_without_links_is_a_row_that_says_so(path: str, odd: str) -> None:
    (record,) = records([odd + path])
    assert isinstance(record.location, Unusable)
    assert (record.location.reason, record.key) == ("no images", odd + path if path else odd.removeprefix("http://"))
    assert "links to no file below it" in record.location.detail


@pytest.mark.timeout(60)
def test_endless_pages_and_folders_end(odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd3.sources.remote.ANSWER_LIMIT", 1 << 20)
    (record,) = records([f"{odd}/endless/"])
    assert isinstance(record.location, Unusable)
    assert (record.location.reason, record.location.detail) == (
        "file too large",
        "the server's answer has more than 1 MiB",
    )
    monkeypatch.setattr("kd3.sources.remote_folders.DEEPEST", 4)
    *files, deepest = records([f"{odd}/deep/"])
    assert [file.key for file in files] == ["0.png", "more/0.png", "more/more/0.png", "more/more/more/0.png"]
    assert isinstance(deepest.location, Unusable)
    assert (deepest.key, deepest.location.reason) == ("more/more/more/more/", "unreachable")
    assert "more than 4 levels deep" in deepest.location.detail


@pytest.mark.timeout(60)
def test_folders_that_multiply_end(odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd3.sources.remote_folders.MOST_FOLDERS", 20)
    found = [record.location for record in records([f"{odd}/branching/"])]
    (limit,) = [place for place in found if isinstance(place, Unusable)]
    assert "20 folders have been listed" in limit.detail
    assert len(found) == 21


class _Torn(_Odd):
    """A server of folders of which some cannot be listed, each in its own way."""

    def do_GET(self) -> None:
        name = self.path.rstrip("/").rpartition("/")[2]
        if name in ("gone", "forbidden", "failing"):
            self.send_error({"gone": 404, "forbidden": 403, "failing": 500}[name])
        elif name == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif name.endswith(".png"):
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.end_headers()
            self.wfile.write(encoded(noise(sum(self.path.encode()))))
        else:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b'<a href="1.png"></a><a href="2.png"></a>')
            if name == "crawl":
                self.wfile.write(b"".join(b'<a href="%s/"></a>' % part.encode() for part in ("a", *TORN, "z")))


TORN = {"failing": "HTTP status 500", "forbidden": "HTTP status 403", "gone": "it does not exist", "reset": "reset"}


@pytest.fixture
def torn(monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Torn) as server:
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_folders_of_a_web_server_that_cannot_be_listed_are_counted_and_named(torn: str, tmp_path: Path) -> None:
    pool = kd3.ingest(f"{torn}/crawl/", tmp_path / "pool", image_size=16, workers=0)
    assert len(pool) == 6  # of the crawl, a and z
    found = rejected(tmp_path / "pool")
    assert found.keys() == {f"{name}/" for name in TORN}
    assert pool.manifest.counts.rejected == {"unreachable": 4}
    for name, words in TORN.items():
        reason, detail = found[f"{name}/"]
        assert reason == "unreachable"
        assert "the folder cannot be listed" in detail
        assert words in detail


def test_stars_name_the_folders_that_they_cannot_look_into(torn: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert expand([f"{torn}/crawl/*/2.png"]) == [f"{torn}/crawl/a/2.png", f"{torn}/crawl/z/2.png"]
    said = capsys.readouterr().err
    assert f"{torn}/crawl/*/2.png may stand for more" in said
    assert all(f"{torn}/crawl/{name}/" in said for name in ("failing", "forbidden", "gone"))
    assert "4 folders cannot be listed" in said


@pytest.mark.parametrize("pattern", ["*/2.png", "[a-z]*/2.png"])
def test_stars_of_other_protocols_name_them_too(
    pattern: str, memory: fsspec.AbstractFileSystem, waits: list[float], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in ("a/2.png", "shut/2.png", "late/2.png", "z/2.png", "z/10.png"):
        memory.pipe_file(f"/crawl/{name}", b"x")
    wrong = {"shut": PermissionError("no entry"), "late": OSError("the bucket is silent")}
    asked = type(memory).ls

    def ls(self: fsspec.AbstractFileSystem, path: str, *args: object, **more: object) -> object:
        if problem := wrong.get(path.strip("/").rpartition("/")[2]):
            raise problem
        return asked(self, path, *args, **more)

    monkeypatch.setattr(type(memory), "ls", ls)
    assert expand([f"memory://crawl/{pattern}"]) == ["memory://crawl/a/2.png", "memory://crawl/z/2.png"]
    said = capsys.readouterr().err
    assert said.count(f"memory://crawl/{pattern} may stand for more: ") == 2
    for name, problem in wrong.items():
        assert f"/crawl/{name}: the folder cannot be listed: {type(problem).__name__}: {problem}" in said
    wrong["crawl"] = PermissionError("no entry to all of it")
    with pytest.raises(
        kd3.KD3Error, match=r"source memory://crawl/.* cannot be read: PermissionError: no entry to all"
    ):
        expand([f"memory://crawl/{pattern}"])


def test_folders_that_match_stars_are_walked(server: WebServer) -> None:
    assert expand([f"{server.url}/*"]) == [f"{server.url}/{name}" for name in ("0/", "1/", "2/", "a.tar")]


@pytest.mark.parametrize("name", ["broken.tar", "broken.tar.gz", "broken.zip"])
def test_answer_that_breaks_off_is_a_fault_of_the_network(name: str, odd: str, waits: list[float]) -> None:
    found = [record.location for record in records([f"{odd}/{name}"])]
    assert isinstance(found[-1], Unusable)
    assert found[-1].reason == "unreachable", found[-1]
    assert "not completed" in found[-1].detail


def test_large_ranges_are_asked_for_in_pieces(
    server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kd3.sources.remote.ANSWER_LIMIT", 1000)
    with opened_remote(f"{server.url}/a.tar", block=64) as file:
        assert file.read() == (tmp_path / "web/a.tar").read_bytes()


def test_relative_entries_of_a_list_lie_beside_it(server: WebServer, tmp_path: Path) -> None:
    list_of(tmp_path / "web/list.txt", ["0/00000.png", f"{server.url}/1/00001.png", "a.tar"])
    pool = kd3.ingest(f"{server.url}/list.txt", tmp_path / "pool", image_size=16, workers=0)
    assert len(pool) == 6
    local = list_of(tmp_path / "local.txt", [f"{server.url}/0/00000.png"])
    assert len(kd3.ingest(local, tmp_path / "other", image_size=16, workers=0)) == 1


def test_struct_of_a_remote_table_names_a_file_beside_it(server: WebServer, tmp_path: Path) -> None:
    import pyarrow as pa

    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"image": pa.array([{"bytes": None, "path": "0/00000.png"}], kind)})
    parquet_of(tmp_path / "web/a.parquet", table)
    (record,) = records([f"{server.url}/a.parquet"])
    assert record.location.read() == some_files(1)["0/00000.png"]


# Missing parts.


@pytest.mark.parametrize(
    ("source", "module", "words"),
    [
        ("s3://bucket/a.tar", "s3fs", "pip install 'kd3[s3]'"),
        ("gs://bucket/a.tar", "gcsfs", "pip install 'kd3[gcs]'"),
        ("hf://datasets/a/b/x.parquet", "huggingface_hub", "pip install 'kd3[hf]'"),
        ("sftp://me:pw@host/a.png", "paramiko", '"paramiko" to be installed'),
        ("nosuch://x/a.tar", "", "Protocol not known: nosuch"),
    ],
)
def test_missing_package_is_a_sentence_with_what_to_install(
    source: str, module: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module or "nosuch", None)  # importing it fails
    monkeypatch.setattr(sys.modules["fsspec.registry"], "_registry", {})
    listed = [str(list_of(tmp_path / "l.txt", ["a.png", source]))]  # read in a process that has every package
    for given in ([source], *([] if module == "huggingface_hub" else [listed])):
        with pytest.raises(kd3.KD3Error) as problem:
            kd3.ingest(given, tmp_path / "pool", image_size=16, workers=0)
        assert words in str(problem.value)
        assert "pw" not in str(problem.value)
        assert not (tmp_path / "pool").exists()


@pytest.mark.parametrize("name", ["nothing.tar", "nothing.png", "nothing/"])
def test_missing_remote_source_leaves_nothing_behind(name: str, server: WebServer, tmp_path: Path) -> None:
    with pytest.raises(kd3.KD3Error) as problem:
        kd3.ingest(f"{server.url}/{name}", tmp_path / "pool", image_size=16)
    assert "does not exist" in str(problem.value)
    assert name in str(problem.value)
    assert not (tmp_path / "pool").exists()


def test_server_that_is_not_there_is_reported(waits: list[float], tmp_path: Path) -> None:
    with web_server(tmp_path) as server:
        url = server.url
    with pytest.raises(kd3.KD3Error, match=r"cannot be read: .*Connect"):
        kd3.ingest(f"{url}/a.tar", tmp_path / "pool", image_size=16)
    assert waits == [1.0, 4.0, 15.0]


# Patience.


def test_failures_that_pass_cost_a_pause_and_no_image(server: WebServer, waits: list[float], tmp_path: Path) -> None:
    images = list_of(tmp_path / "l.txt", [f"{server.url}/{name}" for name in some_files(1)])
    (record,) = records([str(images)])
    server.failures = 2
    assert record.location.read() == some_files(1)["0/00000.png"]
    assert waits == [0.5, 2.0]


@pytest.mark.parametrize(("status", "attempts"), [(503, 3), (429, 3), (403, 1), (410, 1)])
def test_dead_image_is_a_row_with_its_status(
    status: int, attempts: int, server: WebServer, waits: list[float], tmp_path: Path
) -> None:
    server.status = status
    names = list(some_files(2))
    source = list_of(tmp_path / "l.txt", [f"{server.url}/{names[1]}", str(tmp_path / "web" / names[0])])
    server.failures = attempts
    pool = kd3.ingest(source, tmp_path / "pool", image_size=16, workers=0)
    assert (len(pool), len(waits)) == (1, attempts - 1)
    ((key, (reason, detail)),) = rejected(tmp_path / "pool").items()
    assert (key, reason) == (f"{server.url}/{names[1]}", "unreachable")
    assert f"HTTP status {status}" in detail


def test_archive_survives_failures_in_its_middle(
    server: WebServer, waits: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kd3.sources.remote.STREAM_BLOCK", 4096)
    found = []
    for number, record in enumerate(tar_members(f"{server.url}/a.tar", "web", "")):
        found.append(record.location.read())
        server.failures = 2 if number == 2 else server.failures
    assert found == list(some_files(6).values())
    assert waits == [1.0, 4.0]


def test_archive_that_stays_away_is_a_row_and_ends_nothing(
    server: WebServer, waits: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kd3.sources.remote.STREAM_BLOCK", 4096)
    tar_of(tmp_path / "b.tar", {"z.png": encoded(noise(77))})
    found = []
    members = chain.from_iterable(
        tar_members(path, "web", "") for path in (f"{server.url}/a.tar", str(tmp_path / "b.tar"))
    )
    for number, record in enumerate(members):
        found.append(record.location.reason if isinstance(record.location, Unusable) else record.key)
        server.failures = 99 if number == 2 else server.failures
    assert found[-2:] == ["unreachable", "z.png"]
    assert 3 <= len(found) - 2 < 6


@pytest.mark.timeout(30)
def test_endless_answer_of_a_web_server_is_cut_off(monkeypatch: pytest.MonkeyPatch, server: WebServer) -> None:
    monkeypatch.setattr("kd3.sources.remote.FILE_LIMIT", 1 << 20)
    with pytest.raises(Unreadable, match="file too large"):
        Remote(f"{server.url}/endless.jpg").read()


def test_remote_file_is_read_at_any_place_by_ranges(server: WebServer, tmp_path: Path) -> None:
    data = (tmp_path / "web/a.tar").read_bytes()
    with opened_remote(f"{server.url}/a.tar", block=100) as file:
        for place in (5000, 0, 123, len(data) - 3):
            file.seek(place)
            assert file.read(50) == data[place : place + 50]
        assert file.seek(-10, 2) == len(data) - 10
        assert (file.read(), file.read()) == (data[-10:], b"")
    assert len(server.asked) >= 4


def test_large_remote_files_are_refused_unread(memory: fsspec.AbstractFileSystem) -> None:
    memory.pipe_file("/c/a.jpg", b"x")
    memory.pipe_file("/c/b.jpg", b"")
    info = memory.find

    def huge(*words: object, **names: object) -> object:
        found = info(*words, **names)
        found["/c/a.jpg"]["size"] = FILE_LIMIT + 1
        return found

    memory.find = huge
    try:
        first, second = records(["memory://c/"])
    finally:
        del memory.find
    assert isinstance(first.location, Unusable)
    assert first.location.reason == "file too large"
    assert second.location.read() == b""


def test_workers_fetch_ahead_side_by_side(server: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    from kd3.pool.decode import DecodeSettings
    from kd3.pool.decoding import decode_records

    together = threading.Barrier(4, timeout=20)
    read = Remote.read

    def slow(self: Remote) -> bytes:
        together.wait()  # which no thread passes alone
        return read(self)

    monkeypatch.setattr(Remote, "read", slow)
    names = sorted(some_files(4))
    source = list_of(tmp_path / "l.txt", [f"{server.url}/{name}" for name in names])
    outcomes = list(decode_records(records([str(source)]), DecodeSettings(16), workers=0))
    assert [outcome.record.key for outcome in outcomes] == [f"{server.url}/{name}" for name in names]
    assert all(hasattr(outcome.result, "pixels") for outcome in outcomes)


# Secrets.


def test_no_secret_is_written_anywhere(server: WebServer, tmp_path: Path, waits: list[float]) -> None:
    base = server.url.replace("http://", "http://me:hunter2@")
    list_of(tmp_path / "web/l.txt", [f"{base}/0/00000.png?sig=hunter3", f"{base}/gone.png?sig=hunter3"])
    sources = [f"{base}/a.tar?X-Amz-Signature=hunter4", f"{base}/l.txt?token=hunter5", f"{base}/0/"]
    out = tmp_path / "pool"
    pool = kd3.ingest(sources, out, image_size=16, workers=0)
    assert len(pool) == 6
    text = b"".join(path.read_bytes() for path in out.iterdir())
    assert b"hunter" not in text
    assert b"***@" in text
    assert all("hunter" not in str(value) for value in pool.index().to_pydict().values())
    # Signatures expire: with a new one it is the same source.
    again = [source.replace("hunter4", "renewed") for source in sources]
    assert kd3.ingest(again, out, image_size=16, workers=0).content_hash == pool.content_hash
    with pytest.raises(kd3.KD3Error) as problem:
        kd3.ingest(f"{base}/gone.tar?sig=hunter3", tmp_path / "other", image_size=16)
    assert "hunter" not in str(problem.value)


def test_command_line_reads_a_web_server(server: WebServer, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "kd3", "ingest", f"{server.url}/", "--out", tmp_path / "pool"]
    done = subprocess.run([*command, "--image-size", "16"], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    assert "kept        6" in done.stdout
    command[6:] = [f"{server.url}/gone.tar", "--out", tmp_path / "other"]
    done = subprocess.run([*command, "--image-size", "16"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert done.stderr == f"kd3: source {server.url}/gone.tar does not exist\n"


def test_pixels_do_not_depend_on_where_the_array_is(server: WebServer, tmp_path: Path) -> None:
    images = pictures(5)
    place = written("npz, compressed", tmp_path / "web/n", images)
    found = [record.location.read() for record in records([f"{server.url}/n/{place.name}"])]
    assert found == [b"P6\n32 32\n255\n" + image.tobytes() for image in images]
    assert np.array_equal(structs_of({}).num_rows, 0)
