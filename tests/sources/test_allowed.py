"""Untrusted rows and lists: the names they may use, and no row ends an ingest."""

import csv
import socket
import threading
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pyarrow as pa
import pytest
from pool_containers import list_of, parquet_of, web_server
from pool_pictures import encoded, folder_of, noise, some_files

import kd3
from kd3.sources import remote
from kd3.sources.finding import records
from kd3.sources.locations import expand
from kd3.sources.record import InFile, Unreadable
from kd3.sources.remote import Remote, filesystem
from kd3.sources.trust import (
    Trust,
    as_path,
    beside,
    guarded_socket,
    is_private,
    is_private_address,
    named_by_user,
    trust,
    trust_for_good,
    trusted_host,
    trusting,
)


@pytest.fixture(autouse=True)
def nothing_is_trusted_before():
    before = trust()
    trust_for_good(Trust())
    yield
    trust_for_good(before)


def rejected(pool):
    with (pool / "rejected.csv").open(newline="", encoding="utf-8") as handle:
        return {row["key"]: (row["reason"], row["detail"]) for row in csv.DictReader(handle)}


def rows_of(place, paths):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return parquet_of(place, pa.table({"image": pa.array([{"bytes": None, "path": path} for path in paths], kind)}))


FORBIDDEN = [
    "reference://x::file:///tmp/evil.json",
    "zip://a.png::https://h/x.zip",
    "simplecache::https://h/x.png",
    "file:///dev/zero",
    "file:///etc/hostname",
    "/etc/hostname",
    "../outside.png",
    "a/../../outside.png",
    "local:///etc/hostname",
    "memory://x.png",
    "sftp://h/a.png",
    "github://o:r@/a.png",
    "dask::s3://b/k",
    "http://localhost/a.png",
    "http://LOCALHOST:8080/a.png",
    "http://me:pw@127.0.0.1/a.png",
    "https://[::1]/a.png",
    "http://[::ffff:127.0.0.1]/a.png",
    "http://169.254.169.254/latest/meta-data",
    "http://0.0.0.0/a.png",
    "http://10.1.2.3/a.png",
    "https://192.168.1.1:8443/admin",
    "http://172.31.0.9/a.png",
    "http://100.64.0.7/a.png",
    "http://[fd12::1]/a.png",
    "http://[64:ff9b::a00:1]/a.png",
    "http://[2002:0a00:0001::]/a.png",
]


@pytest.mark.parametrize("entry", FORBIDDEN)
def test_what_a_stranger_may_not_name_is_refused_by_lists_and_tables_alike(entry, tmp_path):
    for path in (str(tmp_path / "l.txt"), "http://host/l.txt"):
        if path.startswith("http") and "://" not in entry:
            continue  # beside a list of the web it is a path of that server
        with pytest.raises(Unreadable) as problem:
            beside(path, entry)
        assert problem.value.reason == "not allowed"
        assert any(flag in problem.value.detail for flag in ("--trust-entries", "--private-hosts"))
    (row,) = records([str(rows_of(tmp_path / "t.parquet", [entry]))])
    assert row.location.reason == "not allowed"
    (line,) = records([str(list_of(tmp_path / "l.txt", [entry]))])
    assert line.location.reason == "not allowed"


@pytest.mark.parametrize(
    ("path", "entry", "meant"),
    [
        ("/d/l.txt", "a/b.png", "/d/a/b.png"),
        ("/d/l.txt", "a/../b.png", "/d/a/../b.png"),
        ("/d/l.txt", "/d/a.png", "/d/a.png"),
        ("/d/l.txt", "file:///d/a.png", "/d/a.png"),
        ("/d/l.txt", "https://h/a::b.png", "https://h/a::b.png"),
        ("/d/l.txt", "HTTPS://h/a.png", "https://h/a.png"),
        ("/d/l.txt", "s3://b/a.png", "s3://b/a.png"),
        ("/d/l.txt", "gs://b/a.png", "gs://b/a.png"),
        ("/d/l.txt", "hf://datasets/a/b/c.png", "hf://datasets/a/b/c.png"),
        ("http://h/d/l.txt?q", "a.png", "http://h/d/a.png"),
        ("http://h/d/l.txt", "/etc/hostname", "http://h/d/etc/hostname"),
        ("http://127.0.0.1:81/l.txt", "http://127.0.0.1:81/a.png", "http://127.0.0.1:81/a.png"),
    ],
)
def test_what_a_list_may_name(path, entry, meant):
    assert beside(path, entry) == meant


def test_a_user_may_say_that_a_list_is_his_own(tmp_path):
    folder_of(tmp_path / "else", some_files(2))
    (tmp_path / "lists").mkdir()
    source = list_of(tmp_path / "lists/l.txt", [str(tmp_path / "else" / name) for name in some_files(2)])
    with pytest.raises(kd3.KD3Error, match=r"2 not allowed.*outside the folder of what names it; --trust-entries"):
        kd3.ingest(source, tmp_path / "pool", image_size=16, workers=0)
    pool = kd3.ingest(source, tmp_path / "pool", image_size=16, workers=0, trust_entries=True)
    assert len(pool) == 2
    with trusting(entries=True):
        assert beside("/d/l.txt", "memory://x") == "memory://x"
    with pytest.raises(Unreadable):
        beside("/d/l.txt", "memory://x")


def test_two_colons_in_the_name_of_a_file_elsewhere_begin_no_other_url(tmp_path):
    system, path = filesystem("https://h/a::reference://evil.json")
    assert (type(system).__name__, path) == ("HTTPFileSystem", "https://h/a::reference://evil.json")
    memory = fsspec.filesystem("memory")
    try:
        memory.pipe_file("/c/a.png", encoded(noise(1)))
        memory.pipe_file("/c/b::memory:.png", b"x")
        found = {record.key: record.location for record in records(["memory://c"])}
        assert {key for key, location in found.items() if isinstance(location, Remote)} == {"a.png"}
        assert {getattr(location, "reason", None) for location in found.values()} == {None, "not allowed"}
        with pytest.raises(kd3.KD3Error, match="would stand for a chain of URLs"):
            expand(["memory://c/*.png"])
    finally:
        memory.store.clear()
        memory.pseudo_dirs[:] = [""]


# Redirects.


class _Redirects(BaseHTTPRequestHandler):
    def __init__(self, to, *words):
        self.to = to
        super().__init__(*words)

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.send_response(302)
        self.send_header("Location", self.to)
        self.end_headers()


@contextmanager
def redirecting(to):
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Redirects, to)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_no_name_and_no_redirect_leads_to_this_machine(tmp_path, monkeypatch):
    ask = socket.getaddrinfo

    def answer(host, *words, **more):
        return ask("127.0.0.1" if host in ("evil.example", b"evil.example") else host, *words, **more)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    monkeypatch.setattr(remote, "IMAGE_WAITS", ())
    web = folder_of(tmp_path / "web", {"a.png": encoded(noise(3))})
    with web_server(web) as server:
        port = server.server_address[1]
        for host, reason in (("evil.example", "not allowed"), ("127.1", "unreachable"), ("0x7f.1", "not allowed")):
            url = f"http://{host}:{port}/a.png"
            assert not is_private(url)  # it does not say so, and yet it does
            with pytest.raises(Unreadable) as problem:
                Remote(url).read()
            assert problem.value.reason == reason, url  # aiohttp itself refuses 127.1
        assert server.asked == []
        assert Remote(f"{server.url}/a.png").read() == encoded(noise(3))  # what a user names outright
        with trusting(entries=True):
            assert Remote(f"http://evil.example:{port}/a.png").read() == encoded(noise(3))


@pytest.mark.parametrize("to", ["file:///etc/hostname", "ftp://h/a.png", "data:image/png;base64,AAAA"])
def test_redirects_lead_to_no_other_scheme(to, monkeypatch):
    monkeypatch.setattr(remote, "IMAGE_WAITS", ())
    with redirecting(to) as url, pytest.raises(Unreadable) as problem:
        Remote(url + "/x.png").read()
    assert problem.value.reason == "unreachable"


def test_a_server_that_the_user_has_named_redirects_to_itself_and_to_no_other_private_one(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "IMAGE_WAITS", ())
    web = folder_of(tmp_path / "web", {"a.png": encoded(noise(4))})
    with web_server(web) as server, redirecting(f"{server.url}/a.png") as same:
        named_by_user(same)
        assert Remote(f"{same}/x.png").read() == encoded(noise(4))
        for other in ("127.0.0.2", "169.254.169.254", "[::1]", "0.0.0.0"):
            with redirecting(f"http://{other}:{server.server_address[1]}/a.png") as url:
                named_by_user(url)
                with pytest.raises(Unreadable) as problem:
                    Remote(f"{url}/x.png").read()
                assert problem.value.reason == "not allowed", other
        assert server.asked.count("/a.png") == 1


def test_a_name_that_the_user_has_given_leads_to_its_own_addresses(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_: [(2, 1, 6, "", ({"nas.lan": "10.0.0.7"}[host], 0))])
    named_by_user("http://nas.lan/l.txt")
    assert trusted_host("http://nas.lan/a.png") == "nas.lan"
    assert trusted_host("http://nas.lan:81/a.png") is None
    guarded_socket((2, 1, 6, "", ("10.0.0.7", 80)), trusted="nas.lan").close()
    for address, host in (("10.0.0.8", "nas.lan"), ("10.0.0.7", None)):
        with pytest.raises(OSError, match="this machine or of a private network"):
            guarded_socket((2, 1, 6, "", (address, 80)), trusted=host)


def test_a_name_that_changes_its_address_after_it_was_given_leads_to_no_private_one(monkeypatch, tmp_path):
    monkeypatch.setattr(remote, "IMAGE_WAITS", ())
    ask, answers = socket.getaddrinfo, {"moves.example": "93.184.216.34", "stays.lan": "127.0.0.1"}

    def answer(host, *words, **more):
        name = host.decode() if isinstance(host, bytes) else host
        return ask(answers.get(name, name), *words, **more)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    web = folder_of(tmp_path / "web", {"a.png": encoded(noise(6))})
    with web_server(web) as server:
        moves, stays = (f"http://{name}:{server.server_address[1]}" for name in answers)
        named_by_user(moves)
        named_by_user(stays)
        answers["moves.example"] = "127.0.0.1"
        named_by_user(moves)  # another source of it, later
        with pytest.raises(Unreadable, match="--private-hosts"):
            Remote(f"{moves}/a.png").read()
        assert server.asked == []
        assert Remote(f"{stays}/a.png").read() == encoded(noise(6))


def test_the_wait_for_a_name_is_bounded(monkeypatch):
    monkeypatch.setattr("kd3.sources.trust.RESOLVE_SECONDS", 0.05)
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: answered.wait(30) and [(2, 1, 6, "", ("10.0.0.7", 0))])
    named_by_user("http://slow.lan/l.txt")
    answered.set()
    with pytest.raises(OSError, match="private network"):
        guarded_socket((2, 1, 6, "", ("10.0.0.7", 80)), trusted="slow.lan")


@pytest.mark.parametrize(
    "address",
    [
        *("127.9.9.9", "::1", "169.254.1.1", "fe80::1%eth0", "0.0.0.0", "::ffff:127.0.0.1", "10.9.8.7", "172.16.0.1"),
        *("192.168.3.4", "100.100.100.200", "fd00:ec2::254", "::ffff:10.0.0.1", "64:ff9b::c0a8:1", "224.0.0.1"),
    ],
)
def test_a_connection_to_a_private_address_is_refused_at_the_socket(address):
    assert is_private_address(address)
    with pytest.raises(OSError, match="this machine"):
        guarded_socket((2, 1, 6, "", (address, 80)))


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::", "172.32.0.1", "64:ff9b::5db8:d822", "host"])
def test_public_addresses_and_names_are_let_through(address):
    assert not is_private_address(address)


def test_what_a_list_names_of_a_private_network_takes_the_users_word_and_a_source_does_not(tmp_path, monkeypatch):
    ask = socket.getaddrinfo

    def answer(host, *words, **more):
        return ask("127.0.0.1" if host in ("nas.lan", b"nas.lan", "web.lan", b"web.lan") else host, *words, **more)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    monkeypatch.setattr(remote, "IMAGE_WAITS", ())
    web = folder_of(tmp_path / "web", some_files(2))
    with web_server(web) as server:
        port = server.server_address[1]
        (web / "own.txt").write_text("\n".join(some_files(2)))
        (web / "other.txt").write_text("\n".join(f"http://web.lan:{port}/{name}" for name in some_files(2)))
        pool = kd3.ingest(f"http://nas.lan:{port}/own.txt", tmp_path / "own", image_size=16, workers=0)
        assert len(pool) == 2  # the user has named this server
        with pytest.raises(kd3.KD3Error, match=r"2 not allowed.*private network; --private-hosts"):
            kd3.ingest(f"http://nas.lan:{port}/other.txt", tmp_path / "other", image_size=16, workers=0)
        kd3.ingest(f"http://nas.lan:{port}/other.txt", tmp_path / "o", image_size=16, workers=0, private_hosts=True)
        source = list_of(tmp_path / "far.txt", ["memory://x.png", f"http://web.lan:{port}/0.png"])
        with pytest.raises(kd3.KD3Error, match="not allowed"):  # that flag lets nothing else through
            kd3.ingest(source, tmp_path / "far", image_size=16, workers=0, limit=1, private_hosts=True)


def test_the_name_of_a_bucket_is_no_server_that_the_user_has_named(monkeypatch):
    for url in ("s3://10.0.0.9/a.tar", "hf://10.0.0.9/x", "zip://a.png::http://10.0.0.9/x.zip"):
        named_by_user(url)
        with pytest.raises(Unreadable, match="not allowed"):
            beside("/d/l.txt", "http://10.0.0.9/admin")
    named_by_user("http://10.0.0.9/l.txt")
    assert beside("/d/l.txt", "http://10.0.0.9/a.png") == "http://10.0.0.9/a.png"


# One row costs one row.


def test_each_odd_row_costs_itself(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.setattr(sys.modules["fsspec.registry"], "_registry", {})
    files = folder_of(tmp_path, {"good.png": encoded(noise(1)), "gs::y.png": encoded(noise(2))})
    odd = ["a\0b.png", "gs://bucket/x.png", "gs::z.png", "x" * 5000, "\udcff.png".encode("utf-8", "replace").decode()]
    table = rows_of(tmp_path / "t.parquet", [*odd, "good.png", "gs::y.png"])
    pool = kd3.ingest(table, tmp_path / "pool", image_size=16, workers=0)
    assert len(pool) == 2
    found = rejected(tmp_path / "pool")
    assert {key: reason for key, (reason, _) in found.items()} == {
        "0": "unreadable",
        "1": "not installed",
        "2": "not allowed",
        "3": "unreadable",
        "4": "unreadable",
    }
    assert "pip install 'kd3[gcs]'" in found["1"][1]
    entries = list_of(tmp_path / "l.txt", [*odd[1:4], "gs::y.png", "good.png", "gs://bucket/a.tar", "a\0b.tar"])
    assert len(kd3.ingest(entries, tmp_path / "other", image_size=16, workers=0)) == 2
    assert len(rejected(tmp_path / "other")) == 5
    assert len(kd3.ingest(files / "l.txt", tmp_path / "third", image_size=16, workers=1)) == 2


def test_a_field_beyond_csvs_limit_costs_its_row(tmp_path):
    folder_of(tmp_path, {"a.png": encoded(noise(1)), "b.png": encoded(noise(2))})
    (tmp_path / "l.csv").write_text("path,text\na.png,x\n" + f"c.png,{'y' * 140_000}\n" + "b.png,z\n")
    pool = kd3.ingest(tmp_path / "l.csv", tmp_path / "pool", image_size=16, workers=0)
    assert len(pool) == 2
    ((key, (reason, detail)),) = rejected(tmp_path / "pool").items()
    assert (key, reason) == ("entry 2", "unreadable")
    assert "field larger than field limit" in detail


@pytest.mark.parametrize("name", ["gs::y.png", "http::x.png", "zip::memory:: a.png"])
def test_a_file_that_is_called_like_a_url_is_a_file(name, tmp_path, monkeypatch):
    folder_of(tmp_path / "in", {name: encoded(noise(5))})
    monkeypatch.chdir(tmp_path / "in")
    for sources in ([name], ["*"], ["."], [str(tmp_path / "in/l.txt")], ["l.txt"]):
        if sources[0].endswith(".txt"):
            list_of(tmp_path / "in/l.txt", [name])
        found = [record for record in records(sources) if isinstance(record.location, InFile)]
        assert [record.location.read() for record in found] == [encoded(noise(5))], sources
    assert as_path(name) == f"./{name}"
