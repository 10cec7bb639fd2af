"""Folders, tars and zips list the same files; hostile ones harm nothing."""

import inspect
import io
import os
import socket
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from pool_pictures import folder_of, some_files, tar_of, zip_of

from kd3.runtime.errors import KD3Error
from kd3.sources.files import is_sidecar
from kd3.sources.finding import counts, list_records, records
from kd3.sources.locations import expand, expand_braces
from kd3.sources.record import FILE_LIMIT, Record, Unreadable, Unusable


def reason(record: Record) -> str | None:
    return record.location.reason if isinstance(record.location, Unusable) else None


def contents(source: Path) -> dict[str, bytes]:
    return {record.key: record.location.read() for record in list_records([str(source)])}


def test_folder_tar_compressed_tar_and_zip_give_the_same_files(tmp_path: Path) -> None:
    files = dict(sorted(some_files(9).items()))
    places = [
        folder_of(tmp_path / "folder", files),
        tar_of(tmp_path / "a.tar", files),
        tar_of(tmp_path / "a.tar.gz", files, "w:gz"),
        tar_of(tmp_path / "a.tgz", files, "w:gz"),
        tar_of(tmp_path / "a.tar.xz", files, "w:xz"),
        zip_of(tmp_path / "a.zip", files),
    ]
    for place in places:
        assert list(contents(place).items()) == list(files.items()), place


def test_archives_in_a_folder_stand_in_their_place(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a.jpg": b"1", "c.jpg": b"3"})
    tar_of(tmp_path / "b.tar", {"x/y.jpg": b"2", "inner.zip": b"PK"})
    assert list(contents(tmp_path)) == ["a.jpg", "b.tar/x/y.jpg", "b.tar/inner.zip", "c.jpg"]


def test_names_alone_decide_what_is_a_sidecar() -> None:
    assert all(map(is_sidecar, ["a.json", "b/A.TXT", ".hidden.jpg", ".git/x.jpg", "a/__MACOSX/b.jpg", "a/._b.jpg"]))
    assert not any(map(is_sidecar, ["a.jpg", "noextension", "page.html", "./a.jpg", "../a.jpg", "a.b/c.webp"]))


def test_sidecars_are_listed_as_such_and_left_out_of_list_records(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tar", {"1.jpg": b"x", "1.json": b"{}"})
    assert [reason(record) for record in records([str(tmp_path / "a.tar")])] == [None, "sidecar"]
    assert [record.key for record in list_records([str(tmp_path / "a.tar")])] == ["1.jpg"]


def test_pipes_and_sockets_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.jpg"))
        assert [reason(r) for r in records([str(tmp_path)])] == ["not a regular file"] * 2
        assert [reason(r) for r in records([str(tmp_path / "pipe.jpg")])] == ["not a regular file"]


def test_linked_files_and_folders_count_and_loops_end(tmp_path: Path) -> None:
    folder_of(tmp_path / "real", {"a.jpg": b"1", "sub/b.jpg": b"1", ".kept/c/d.jpg": b"1"})
    folder_of(tmp_path / "outside", {"e.jpg": b"1", "in/f.jpg": b"1"})
    for link, target in {
        "loop": "real", "sub/up": "real", "above": ".", "link.jpg": "real/a.jpg", "nowhere.jpg": "absent",
        "inner": "real/sub", "hidden": "real/.kept/c", "other": "outside", "twice": "outside", "third": "outside/in",
    }.items():  # fmt: skip
        (tmp_path / "real" / link).symlink_to(tmp_path / target)
    (tmp_path / "outside" / "back").symlink_to(tmp_path / "outside")
    found = {record.key: reason(record) for record in list_records([str(tmp_path / "real")])}
    read = {"a.jpg", "sub/b.jpg", "link.jpg", "hidden/d.jpg", "other/e.jpg", "other/in/f.jpg"}
    assert {key for key, why in found.items() if why is None} == read
    refused = {"loop", "sub/up", "above", "inner", "twice", "third", "other/back", "nowhere.jpg"}
    assert {key for key, why in found.items() if why == "not a regular file"} == refused


def test_folders_linked_to_one_another_end(tmp_path: Path) -> None:
    for name in "abcdefgh":
        folder_of(tmp_path / name, {"1.jpg": b"1"})
        for other in "abcdefgh":
            (tmp_path / name / other).symlink_to(tmp_path / other)
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "a").symlink_to(tmp_path / "a")
    read = [record for record in records([str(tmp_path / "start")]) if reason(record) is None]
    assert {Path(record.key).parent.name for record in read} == set("abcdefgh")
    assert len(read) == 8


def test_walk_holds_no_call_per_level_of_nesting(tmp_path: Path) -> None:
    levels = 300  # few enough for pytest to clean up after us, whatever happens here
    (tmp_path / "/".join("d" * levels)).mkdir(parents=True)
    (tmp_path / "/".join("d" * levels) / "a.jpg").write_bytes(b"1")
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        found = list(records([str(tmp_path)]))
    finally:
        sys.setrecursionlimit(before)
    assert [record.key.count("/") for record in found] == [levels]


def test_tar_links_devices_and_paths_that_climb_are_never_followed(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo(f"{kind!r}.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        climber = tarfile.TarInfo("../../evil.jpg")
        climber.size = 4
        archive.addfile(climber, io.BytesIO(b"data"))
    found = list(records([str(path)]))
    assert [reason(record) for record in found] == ["not a regular file"] * 4 + [None]
    assert found[-1].location.read() == b"data"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_truncated_tar_gives_what_it_has_and_one_row_of_damage(tmp_path: Path, mode: str) -> None:
    whole = tar_of(tmp_path / "whole", {f"{n}.jpg": os.urandom(3000) for n in range(20)}, mode).read_bytes()
    path = tmp_path / ("cut.tar" if mode == "w" else "cut.tar.gz")
    path.write_bytes(whole[: len(whole) // 2])
    found = list(records([str(path)]))
    assert 5 < len(found) < 15
    assert (found[-1].key, reason(found[-1])) == (path.name, "archive damaged")
    assert [reason(record) for record in found[:-1]] == [None] * (len(found) - 1)


def test_garbled_header_in_a_tar_is_reported(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", {f"{n}.jpg": b"x" * 512 for n in range(10)})
    data = bytearray(path.read_bytes())
    data[5 * 1024 : 5 * 1024 + 200] = b"\xee" * 200
    path.write_bytes(data)
    found = [reason(record) for record in records([str(path)])]
    assert found == [None] * 5 + ["archive damaged"]


def test_tar_header_that_asks_for_all_memory_is_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 1 << 40
    (tmp_path / "a.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + b"\0" * 2048)
    assert [r.location for r in records([str(tmp_path / "a.tar")])] == [
        Unusable("archive damaged", "a header states an impossible size")
    ]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip"])
@pytest.mark.parametrize("data", [b"", b"junk" * 400])
def test_archive_that_is_none_is_one_row(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert [(r.key, reason(r)) for r in records([str(tmp_path / name)])] == [(name, "archive damaged")]


def test_damaged_zip_member_costs_itself_alone(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", {"1.jpg": b"a" * 100, "2.jpg": b"b" * 100})
    data = bytearray(path.read_bytes())
    data[data.index(b"aaaa")] ^= 1
    path.write_bytes(data)
    first, second = records([str(path)])
    with pytest.raises(Unreadable, match="archive damaged"):
        first.location.read()
    assert second.location.read() == b"b" * 100


def test_zip_replaced_since_it_was_read_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    assert contents(zip_of(path, {"1.jpg": b"old"})) == {"1.jpg": b"old"}
    path.unlink()
    assert contents(zip_of(path, {"1.jpg": b"newer"})) == {"1.jpg": b"newer"}


def test_files_beyond_the_limit_are_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "huge.jpg").open("wb") as handle:
        handle.truncate(FILE_LIMIT + 1)
    with pytest.raises(Unreadable, match="file too large"):
        contents(tmp_path)
    header = tarfile.TarInfo("huge.jpg")
    header.size = FILE_LIMIT + 1
    (tmp_path / "a.tar").write_bytes(header.tobuf())
    assert reason(next(records([str(tmp_path / "a.tar")]))) == "file too large"


def test_names_that_are_no_text_become_text(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"x")
    (key,) = contents(tmp_path)
    assert key.encode() == b"caf\\udce9.jpg"


def test_encrypted_zip_member_is_reported(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", {"1.jpg": b"x"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    assert [reason(record) for record in records([str(path)])] == ["encrypted"]


def test_braces() -> None:
    assert expand_braces("{08..10}.tar") == ["08.tar", "09.tar", "10.tar"]
    assert expand_braces("{9..10}") == ["9", "10"]
    assert expand_braces("{a,b}/{1..2}") == ["a/1", "a/2", "b/1", "b/2"]
    with pytest.raises(KD3Error, match="empty or has more"):
        expand_braces("{3..1}")


def test_globs_are_sorted_and_existing_names_are_meant_as_they_are(tmp_path: Path) -> None:
    for name in ("2.tar", "1.tar", "[x].jpg", "{1..3}.jpg"):
        (tmp_path / name).write_bytes(b"")
    assert expand([f"{tmp_path}/*.tar"]) == [f"{tmp_path}/1.tar", f"{tmp_path}/2.tar"]
    for name in ("[x].jpg", "{1..3}.jpg"):
        assert expand([f"{tmp_path}/{name}"]) == [f"{tmp_path}/{name}"]


@pytest.mark.parametrize("source", ["absent", "*.nothing", "{0..2}.tar", "x" * 5000, "a\0b"])
def test_missing_source_is_told_in_a_sentence(tmp_path: Path, source: str) -> None:
    with pytest.raises(KD3Error, match=r"does not exist|no file matches"):
        expand([f"{tmp_path}/{source}"])


def test_counting_agrees_with_listing(tmp_path: Path) -> None:
    files = some_files(30)
    folder_of(tmp_path / "folder", files)
    tar_of(tmp_path / "folder/a.tar", files)
    zip_of(tmp_path / "folder/b.zip", files)
    source = [str(tmp_path / "folder")]
    assert sum(count or 0 for count in counts(source)) == len(list(records(source))) == 90
    tar_of(tmp_path / "folder/c.tgz", files, "w:gz")
    assert None in list(counts(source))


def test_zip_names_are_kept_as_keys(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.mkdir("test/ship") if hasattr(archive, "mkdir") else None
        archive.writestr("test/ship/1.jpg", b"x")
    assert list(contents(tmp_path / "a.zip")) == ["test/ship/1.jpg"]
