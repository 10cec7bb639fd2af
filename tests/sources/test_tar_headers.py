"""The quick reader of tar headers says what `tarfile` says, or leaves it to that."""

import io
import sys
import tarfile
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kd3.sources import tar
from kd3.sources.finding import records
from kd3.sources.record import InFile, Record
from kd3.sources.tar import ordinary_member

NAMES = st.one_of(
    st.sampled_from(["a.jpg", "./b.jpg", "c.json", "d/", "e/f.jpg", ".hidden", "/", "n\u00e4me.jpg", "../up.jpg"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20),
    st.integers(90, 300).map(lambda length: "long/" * 3 + "x" * length),
    st.integers(20, 70).map(lambda count: "part/" * count + "end.jpg"),
)
KINDS = st.sampled_from(
    [tarfile.REGTYPE] * 8
    + [tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, b"Z"]
)


@st.composite
def members(draw: st.DrawFn) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(draw(NAMES))
    member.type = draw(KINDS)
    member.linkname = draw(NAMES) if member.type in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    member.mtime = draw(st.sampled_from([0, 1, 1_700_000_000, 1_700_000_000.5, -1, 1 << 40]))  # type: ignore[assignment]
    member.uid = draw(st.sampled_from([0, 1000, 1 << 22]))
    member.uname = draw(st.sampled_from(["", "root", "j\u00f6rg"]))
    if draw(st.integers(0, 9)) == 0:
        member.pax_headers = draw(st.sampled_from([{"comment": "x"}, {"path": "other.jpg"}, {"size": "1"}]))
    data = draw(st.binary(max_size=20)) * draw(st.sampled_from([1, 1, 40, 512]))
    member.size = len(data)
    return member, data


@st.composite
def tars(draw: st.DrawFn) -> bytes:
    """A tar, perhaps cut, perhaps with bytes changed, perhaps with checksums made right again after."""
    buffer = io.BytesIO()
    globals_ = draw(st.sampled_from([None, None, None, {"comment": "all"}, {"uname": "all"}, {"path": "same.jpg"}]))
    for member, data in draw(st.lists(members(), max_size=6)):
        format = draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
        try:
            header = member.tobuf(format, errors="surrogateescape")
        except ValueError:
            continue  # ustar has no room for such a name or number
        if globals_ and draw(st.booleans()):
            buffer.write(tarfile.TarInfo.create_pax_global_header(globals_))
        buffer.write(header)
        if draw(st.integers(0, 15)):  # without its contents the next header lies among them
            buffer.write(data + bytes(-len(data) % 512))
    content = bytearray(buffer.getvalue() + bytes(draw(st.sampled_from([0, 512, 1024, 10240]))))
    for _ in range(draw(st.sampled_from([0, 0, 1, 3]))):
        if content:
            place = draw(st.integers(0, len(content) - 1))
            content[place] = draw(st.sampled_from([0, 32, 48, 55, 56, 128, 255, ord("L"), ord("x"), ord("g")]))
            if draw(st.booleans()):
                mend(content, place // 512 * 512)
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.integers(0, 3)) == 0 else content)


def mend(content: bytearray, start: int) -> None:
    """Make the checksum of a block right, as one would who means harm."""
    content[start + 148 : start + 156] = b" " * 8
    content[start + 148 : start + 156] = f"{sum(content[start : start + 512]):06o}\0 ".encode()


def both(path: Path) -> tuple[list[Record], list[Record]]:
    quick = list(records([str(path)]))
    with mock.patch.object(tar, "ordinary_member", return_value=None):
        return quick, list(records([str(path)]))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(content=tars())
def test_quick_reader_lists_what_tarfile_lists(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "generated.tar"
    path.write_bytes(content)
    quick, careful = both(path)
    assert quick == careful
    assert careful == through_tarfile_alone(path)


def through_tarfile_alone(path: Path) -> list[Record]:
    """What one pass of `tarfile` from start to end lists, as a compressed tar is read."""
    found = []
    try:
        with tarfile.open(path, "r:", tarinfo=tar._Member) as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]
                if not member.isdir():
                    regular = member.isreg() and not member.issparse()
                    at = InFile(str(path), member.offset_data, member.size)
                    is_label = regular and tar.is_labels(member.name, member.size)
                    unusable = tar.sidecar(at) if is_label else tar._unusable(member.name, member.size, regular)
                    key = tar.printable(member.name.removeprefix("./"))
                    found.append(Record(str(path), key, unusable or at))
    except Exception as problem:
        told = tar.Unusable("archive damaged", str(problem) or type(problem).__name__)
        found.append(Record(str(path), path.name, told))
    return found


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["a.jpg", "deep/" * 25 + "a.jpg", "f\u00fcnf.jpg"])
def test_usual_shards_are_read_quickly_throughout(tmp_path: Path, format: int, name: str) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=format) as archive:
        for mtime in (0, 1_700_000_000.25):  # WebDataset writes fractions of seconds, which take a pax header
            member = tarfile.TarInfo(name)
            member.size, member.mtime = 700, mtime  # type: ignore[assignment]
            archive.addfile(member, io.BytesIO(bytes(700)))
    with mock.patch.object(tar._Careful, "member", return_value=None) as careful:
        assert [record.key for record in records([str(path)])] == [name] * 2
    assert careful.call_count == 1  # at the end


@pytest.mark.parametrize("shape", ["tar", "folder"])
def test_listing_reads_no_more_for_each_file_of_a_large_source(tmp_path: Path, shape: str) -> None:
    calls = {}
    for count in (2_000, 20_000):
        source = tmp_path / f"{count}.tar" if shape == "tar" else tmp_path / str(count)
        if shape == "tar":
            header = tarfile.TarInfo("a.jpg")
            header.size = 3
            source.write_bytes((header.tobuf() + b"abc" + bytes(509)) * count + bytes(1024))
        else:
            for number in range(count):
                if number % 1000 == 0:
                    (source / str(number)).mkdir(parents=True)
                (source / str(number // 1000 * 1000) / f"{number}.jpg").touch()
        calls[count] = calls_made(source, count)
    assert calls[20_000] < 12 * calls[2_000]


def calls_made(source: Path, count: int) -> int:
    """How many calls of Python or C functions listing makes: a measure of time that no other process sways."""
    calls = 0

    def counted(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        assert sum(1 for _ in records([str(source)])) == count
    finally:
        sys.setprofile(None)
    return calls


def test_huge_extended_headers_are_left_to_tarfile(tmp_path: Path) -> None:
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 1 << 30
    path = tmp_path / "a.tar"
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with path.open("rb", buffering=0) as file:
        assert ordinary_member(file.fileno(), 0) is None


@pytest.mark.parametrize(
    "body",
    [b"25 path=lying.jpg\n", b"12 path=lying.jpg\n", b"18 path=right.jpg\n", b"18 path=right.jpg\n\0 21 path=b.jpg\n"],
)
def test_pax_records_that_lie_about_their_length_are_left_to_tarfile(tmp_path: Path, body: bytes) -> None:
    extension, member = tarfile.TarInfo("x"), tarfile.TarInfo("plain.jpg")
    extension.type, extension.size = tarfile.XHDTYPE, len(body)
    path = tmp_path / "a.tar"
    path.write_bytes(
        extension.tobuf(tarfile.USTAR_FORMAT)
        + body.ljust(512, b"\0")
        + member.tobuf(tarfile.USTAR_FORMAT)
        + bytes(1024)
    )
    quick, careful = both(path)
    assert quick == careful == through_tarfile_alone(path)
