"""Recorded parts of a URL: scheme, host and path; different URLs stay different."""

import json

import pytest
from pool_containers import list_of, parquet_of, web_server
from pool_pictures import encoded, folder_of, noise, some_files

import kd3
from kd3.sources.files import archive_kind, base_name, shown
from kd3.sources.finding import records
from kd3.sources.trust import secrets_of, without_secrets, written

NAMES = [
    *("api-key", "x-api-key", "subscription-key", "jwt", "session", "code", "sig", "X-Amz-Signature", "pwd"),
    *("api%2Dkey", "%61pikey", "x%252Dapi%252Dkey", "Key-Pair-Id", "whatever", "a b", "k\u00e9y", "id"),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("before", ["?", "?w=1&", "#", ";", "/x;", "%3F", "?a=1;", "?w=1#"])
def test_nothing_behind_the_path_is_kept_whatever_it_is_called(name, before):
    url = f"https://host:81/a.jpg{before}{name}=hunter2&x=hunter3"
    in_text = without_secrets(f"cannot get '{url.replace(' ', '+')}', sorry")  # where a space ends it
    for text in (written(url), shown(url), in_text):
        assert "hunter" not in text
        assert "https://host:81/a.jpg" in text
    assert written(written(url)) == written(url)


@pytest.mark.parametrize(
    "password",
    [
        "hunter2",
        "hun/ter2",
        "hun?ter2",
        "hun#ter2",
        "hun@ter2",
        "h@un/ter2",
        "hun::ter2",
        "hun'ter2",
        'hun" ter2',
        "hun%40ter2",
    ],
)
def test_names_and_passwords_are_left_out_whatever_signs_they_hold(password):
    for url in (f"https://me:{password}@host/a.jpg", f"zip://a.png::https://me:{password}@host/x.zip"):
        kept = written(url)
        assert "ter2" not in kept
        assert "hun" not in kept
        assert "me:" not in kept
        assert "***" in kept


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://h/a.jpg", "https://h/a.jpg"),
        ("https://***@h/a.jpg", "https://***@h/a.jpg"),
        ("http://[::1]:80/a.jpg", "http://[::1]:80/a.jpg"),
        ("zip://a.png::https://u:p@h/x.zip", "zip://a.png::https://***@h/x.zip"),
        ("hf://datasets/me/data@main/a.parquet", "hf://datasets/me/data@main/a.parquet"),
        ("s3://bucket/key=value/a@b.jpg", "s3://bucket/key=value/a@b.jpg"),
        ("s3://id:se/cret@bucket/a.jpg", "s3://***@bucket/a.jpg"),
        ("https://h/a.jpg?X-Amz-Date=1&X-Amz-Signature=2&Expires=3", "https://h/a.jpg"),
        ("https://h.blob/a?sv=2020&se=2021&sig=abc%3D", "https://h.blob/a"),
        ("note:: see", "note:: see"),
        ("/folder/me:pw@x.jpg", "/folder/me:pw@x.jpg"),
    ],
)
def test_scheme_host_and_path_are_kept(url, kept):
    assert shown(url) == kept


def test_urls_that_differ_only_in_their_query_stay_two():
    urls = [f"https://h/get?id={n}" for n in range(50)] + ["https://h/get", "https://h/get?", "https://h/get;v=1"]
    assert len({written(url) for url in urls}) == 52  # "?" alone asks for the same
    assert len({written(f"s3://b/get{end}") for end in ("#1", "#2", "?1", "")}) == 4
    # What kd3 wrote before, and a renewed signature, are the same as ever.
    assert written("https://h/a?w=2&X-Amz-Signature=***") == written("https://h/a?w=2&X-Amz-Signature=new")


def test_messages_lose_the_secrets_of_the_url_that_they_are_about():
    url = "https://me:pass word@h/a?code=open sesame&x=%61bcd"
    found = secrets_of(url)
    for part in ("pass word", "pass%20word", "open sesame", "%61bcd", "abcd"):
        assert part in found


def test_a_pool_tells_apart_what_only_the_query_does_and_holds_no_secret(tmp_path):
    files = some_files(2)
    web = folder_of(tmp_path / "web", files)
    names = list(files)
    with web_server(web) as server:
        entries = [f"{server.url}/{name}?n={n}&code=hunter2" for n, name in enumerate([*names, "gone.png", "gone.png"])]
        source = list_of(tmp_path / "l.txt", entries)
        out = tmp_path / "pool"
        pool = kd3.ingest(source, out, image_size=16, workers=0, trust_entries=True)
        assert len(set(pool.index()["key"].to_pylist())) == 2
        lines = (out / "rejected.csv").read_text().splitlines()[1:]
        assert len(set(lines)) == 2
        assert all(f"{server.url}/gone.png?~" in line for line in lines)
    assert b"hunter2" not in b"".join(path.read_bytes() for path in out.iterdir())


def test_a_pool_of_an_earlier_version_is_known_again(tmp_path):
    web = folder_of(tmp_path / "web", some_files(2))
    (web / "l.txt").write_text("\n".join(some_files(2)))
    out = tmp_path / "pool"
    with web_server(web) as server:
        source = f"{server.url}/l.txt?w=2&token="
        pool = kd3.ingest(source + "first", out, image_size=16, workers=0)
        manifest = json.loads((out / "manifest.json").read_text())
        manifest["settings"]["sources"] = [source + "***"]  # as they were written once
        del manifest["settings"]["trust_entries"]
        (out / "manifest.json").write_text(json.dumps(manifest))
        assert kd3.ingest(source + "second", out, image_size=16, workers=0).content_hash == pool.content_hash
        with pytest.raises(kd3.KD3Error, match="was begun with sources"):
            kd3.ingest(f"{server.url}/l.txt?w=3", out, image_size=16, workers=0)


def test_what_a_crawler_noted_loses_its_secrets_too(tmp_path):
    import pyarrow as pa

    note = "could not get https://me:hunter2@host/a.jpg?code=hunter2"
    columns = {"jpg": pa.array([b"", b""], pa.binary()), "status": ["failed", "failed"], "error_message": [note, "no"]}
    found = [record.location.detail for record in records([str(parquet_of(tmp_path / "a.parquet", pa.table(columns)))])]
    assert found == ["failed: could not get https://***@host/a.jpg", "failed: no"]


LINKS = ["a.png?code=hunter2", "b.png;jsessionid=hunter3", "c.png#id_token=hunter4", "d.png?n=1&jwt=hunter5"]


def test_names_that_a_page_or_a_list_gives_relative_to_itself_are_left_without_secrets_too(tmp_path):
    web = folder_of(tmp_path / "web", {f"{name[0]}.png": encoded(noise(ord(name[0]))) for name in LINKS})
    (web / "b.png").rename(web / LINKS[1])  # this server has no parameters
    (web / "l.txt").write_text("\n".join([*LINKS, "gone.png?ticket=hunter6", "gone.png?ticket=hunter7"]))
    with web_server(web) as server:
        (web / "page").mkdir()
        links = "".join(f"<a href='{server.url}/page/{name}'>x</a>" for name in LINKS)
        (web / "page/index.html").write_text(f"<html>{links}</html>")
        for source in (f"{server.url}/l.txt", f"{server.url}/page/"):
            found = [(record.source, record.key) for record in records([source])]
            assert len(found) >= len(LINKS), source
            assert "hunter" not in str(found)
            assert {key.partition("?~")[0] for _, key in found} <= {*(f"{n}.png" for n in "abcd"), "gone.png"}
        pool = kd3.ingest(f"{server.url}/l.txt", tmp_path / "pool", image_size=16, workers=0)
        lost = (tmp_path / "pool/rejected.csv").read_text().splitlines()[1:]
        assert len(set(lost)) == 2  # those that differ stay different
        assert "hunter" not in str(pool.index().to_pydict())
        assert b"hunter" not in b"".join(path.read_bytes() for path in (tmp_path / "pool").iterdir())


@pytest.mark.parametrize(
    "behind", [";jsessionid=hunter2", ";v=1;s=hunter2?x=1", "%3Bs=hunter2", "?jwt=hunter2", "#hunter2"]
)
def test_an_archive_is_known_by_its_name_and_called_by_it_whatever_follows_the_path(behind):
    url = f"https://me:hunter3@host/a;v=1/crawl.tar{behind}"
    assert archive_kind(url) == "tar"
    assert base_name(url) == "crawl.tar"
    assert base_name(f"https://me:hun?ter2@host/x.png{behind}") == "x.png"
    assert base_name("s3://bucket/a;b=c.tar") == "a;b=c.tar"  # where no server reads it, it is a name
