"""Members of tar shards, as WebDataset and img2dataset write them. Nothing is ever extracted by name.

A quick reader of ordinary headers in an uncompressed tar, which leaves all others to `tarfile`. `tarfile` needs some
20 microseconds a header, which for a million small images is more than their share. Ordinary is a regular file or a
folder with plain numbers, alone or behind a GNU long name or a pax header that says no more than path and times. All
that is ordinary means the same to `tarfile`; what is not (links, sparse files, global headers, damage, traps) is not
judged here.
"""

from __future__ import annotations

import os
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from tarfile import HeaderError, TarFile, TarInfo
from typing import BinaryIO, NamedTuple

from kd3.runtime.files import COMPRESSED
from kd3.sources.containers import check_unpacked, first_bytes, guarded, is_labels, sidecar
from kd3.sources.files import is_sidecar
from kd3.sources.record import FILE_LIMIT, SIDECAR, InFile, InMemory, Location, Record, Unusable, printable, too_large
from kd3.sources.remote import streamed_remote
from kd3.sources.trust import is_remote

IMAGE_FIELDS = frozenset(
    ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif", "heic", "jxl", "jp2")
)
# Of one name; more are no sample, and must not fill the memory.
MOST_WAITING = 16
MOST_BYTES = 64 << 20


def without_masks(members: Iterable[tuple[str, Location]]) -> Iterator[tuple[str, Location]]:
    """Yield the members of a tar, the fields of a sample beside its image as sidecars.

    `0001.seg.png` beside `0001.jpg` is the field "seg.png" of sample 0001: a mask or the like, and no image of the
    crawl. With no `0001.jpg` it is a file whose name has a dot. A sample's members lie side by side.
    """
    sample: str | None = None
    has_image = False
    waiting: list[tuple[str, Location]] = []
    try:
        for name, location in members:
            found, field = parts(name)
            if found != sample:
                yield from waiting
                sample, has_image, waiting = found, False, []
            if not has_image and field.lower() in IMAGE_FIELDS:
                has_image = True
                yield from ((one, _sidecar(one, place)) for one, place in waiting)
                waiting = []
            if has_image:
                yield name, _sidecar(name, location)
            elif "." in field or waiting:
                waiting.append((name, location))
                if len(waiting) > MOST_WAITING or _bytes(waiting) > MOST_BYTES:
                    yield from waiting
                    waiting = []
            else:
                yield name, location
    except Exception:
        yield from waiting  # members before the damage of an archive are good
        raise
    yield from waiting


def parts(name: str) -> tuple[str, str]:
    """Return the sample that a member belongs to, and its field.

    >>> parts("train/0001.seg.png"), parts("v1.0/readme")
    (('train/0001', 'seg.png'), ('v1.0/readme', ''))
    """
    folder, slash, last = name.rpartition("/")
    sample, _, field = last.partition(".")
    return folder + slash + sample, field


def _sidecar(name: str, location: Location) -> Location:
    if isinstance(location, Unusable):
        return location  # which may know where its labels are
    return Unusable(SIDECAR) if "." in parts(name)[1] else location


def _bytes(members: Iterable[tuple[str, Location]]) -> int:
    held = (place.contents if isinstance(place, Unusable) else place for _, place in members)
    return sum(len(place.data) for place in held if isinstance(place, InMemory))


BLOCK = 512
AT_ONCE = 4 * BLOCK  # a header, and the usual one behind a short pax header
EXTENDED_LIMIT = 1 << 16  # bytes of a long name or a pax header; longer ones are not ordinary
REGULAR, OLD_REGULAR, FOLDER, PAX, GNU_LONG_NAME = b"0", b"\0", b"5", b"x", b"L"

# Octal digits that fill their field, as everybody writes them; or nothing; or base 256 where that is no matter.
_NUMBER = rb"(?:[0-7]{7}[\0 ]|[0-7]{6} \0|\0{8}|[\x80\xff].{7})"
_TIME = rb"(?:[0-7]{11}[\0 ]|\0{12}|[\x80\xff].{11})"
_SUM = rb"(?P<sum>[0-7]{6}(?:\0 |[0-7]\0|[0-7] | \0))"
_HEADER = re.compile(
    rb"(?P<name>.{100})" + 3 * _NUMBER + rb"(?P<size>[0-7]{11})[\0 ]" + _TIME + _SUM
    # then the link's name, the magic word and the owner's names, the device's numbers
    + rb"(?P<type>[0\x005xL]).{100}.{72}" + 2 * _NUMBER + rb"(?P<prefix>.{155})",
    re.DOTALL,
)  # fmt: skip
_PAX_RECORD = re.compile(rb"([1-9][0-9]{0,4}) (path|mtime|atime|ctime)=([^\n\0]*)\n")


class Member(NamedTuple):
    """Contents of an ordinary header."""

    name: str
    is_folder: bool
    start: int  # of the contents, in bytes
    size: int
    end: int  # where the next header begins


class _Header(NamedTuple):
    kind: bytes
    name: bytes
    size: int
    prefix: bytes


def ordinary_member(handle: int, offset: int) -> Member | None:
    """Return the member whose header begins at `offset` of an open file if it is ordinary, else None."""
    blocks = os.pread(handle, AT_ONCE, offset)
    header = _parse(blocks[:BLOCK])
    if header is None:
        return None
    start = offset + BLOCK
    if header.kind == FOLDER:
        return Member("", True, start, 0, start)  # tarfile takes no contents for it either, whatever size it states
    name: str | None = None
    if header.kind in (PAX, GNU_LONG_NAME):
        if header.size > EXTENDED_LIMIT:
            return None
        length = _rounded(header.size)
        if len(blocks) < 2 * BLOCK + length:
            blocks = os.pread(handle, 2 * BLOCK + length, offset)
        data = blocks[BLOCK : BLOCK + length]
        try:
            name = _text(data) if header.kind == GNU_LONG_NAME else _pax_name(data, header.size)
        except ValueError:
            return None
        header = _parse(blocks[BLOCK + length : 2 * BLOCK + length])
        if header is None or header.kind != REGULAR:
            return None
        start += length + BLOCK
    if name is None:
        name = _text(header.name)
        if header.kind == OLD_REGULAR and name.endswith("/"):
            return None  # old notation for folders
        prefix = _text(header.prefix)
        name = f"{prefix}/{name}" if prefix else name
    return Member(name, False, start, header.size, start + _rounded(header.size))


def _parse(block: bytes) -> _Header | None:
    """Return the useful fields of a header, None if its form is unusual or its checksum wrong."""
    match = _HEADER.match(block)
    if match is None or len(block) < BLOCK:
        return None
    name, size, stated, kind, prefix = match.groups()
    # The sum of all bytes, the checksum's own taken for spaces. Adler-32 sums faster than Python does;
    # its lower half is 1 + the sum, and of so few bytes never wraps around.
    total = 256 - 3
    for part in (block[:148], block[156:400], block[400:]):
        total += zlib.adler32(part) & 0xFFFF
    return _Header(kind, name, int(size, 8), prefix) if total == int(stated.rstrip(b"\0 "), 8) else None


def _pax_name(data: bytes, size: int) -> str | None:
    """Return the path in a pax header, None where it holds only times.

    Raises:
        ValueError: it holds anything else.
    """
    if data[size:].strip(b"\0") or b"hdrcharset" in data:  # tarfile looks for that word everywhere
        raise ValueError
    name, place = None, 0
    while place < size:
        record = _PAX_RECORD.match(data, place, size)
        if record is None or record.end() - place != int(record[1]):
            raise ValueError
        if record[2] == b"path":
            name = record[3].decode("utf-8").rstrip("/")
        place = record.end()
    return name


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(tarfile.ENCODING, "surrogateescape")


def _rounded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


HEADER_LIMIT = 1 << 20  # bytes of a long name or pax record; a hostile one asks for all memory
_END: type[Exception] = tarfile.EOFHeaderError  # type: ignore[attr-defined]  # the marked end
_EXTENDED = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip


def tar_members(path: str, source: str, prefix: str, *, limit: int | None = None) -> Iterator[Record]:
    """Yield a tar's members; of a damaged one those before the damage, and one record of the damage.

    From an uncompressed tar only positions are kept, and the bytes are read where they are decoded;
    one that is compressed or lies elsewhere is read in order, here.
    """
    if is_remote(path):
        found = _in_remote(path, limit)
    else:
        found = _in_stream(path, None, limit) if is_packed(path) else _in_plain(path)
    fields = without_masks(found)
    members = (Record(source, prefix + printable(name.removeprefix("./")), location) for name, location in fields)
    return guarded(members, path, source, prefix, limit)


def is_packed(path: str) -> bool:
    """Return whether a tar is compressed and so read sequentially: by its first bytes, if local."""
    first = first_bytes(path)
    return first.startswith(COMPRESSED) if first else not path.lower().endswith(".tar")


def _in_remote(path: str, limit: int | None) -> Iterator[tuple[str, Location]]:
    with streamed_remote(path) as file:
        yield from _in_stream(None, file, limit)


def _in_stream(path: str | None, file: BinaryIO | None, limit: int | None) -> Iterator[tuple[str, Location]]:
    with tarfile.open(path, "r|*", fileobj=file, tarinfo=_Member) as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # tarfile remembers every member it has read
            check_unpacked(archive.offset, limit)  # also what is passed over has to be unpacked
            if not member.isdir():
                unusable = _unusable(member.name, member.size, member.isreg() and not member.issparse())
                if unusable is None:
                    yield member.name, InMemory(_contents(archive, member))
                elif is_labels(member.name, member.size) and member.isreg():
                    yield member.name, sidecar(InMemory(_contents(archive, member)))
                else:
                    yield member.name, unusable


def _in_plain(path: str) -> Iterator[tuple[str, Location]]:
    with open(path, "rb", buffering=0) as file, _Careful(path) as careful:
        offset = 0
        while True:
            member = None if careful.has_globals else ordinary_member(file.fileno(), offset)
            if member is None:
                other = careful.member(offset)
                if other is None:
                    return
                offset = careful.end
                if other.isdir():
                    continue
                name, start, size = other.name, other.offset_data, other.size
                is_file = other.isreg() and not other.issparse()
            elif member.is_folder:
                offset = member.end
                continue
            else:
                name, start, size, offset, is_file = member.name, member.start, member.size, member.end, True
            at = InFile(path, start, size)
            is_label = is_file and is_labels(name, size)
            yield name, (sidecar(at) if is_label else _unusable(name, size, is_file)) or at


class _Careful:
    """`tarfile` at any place of a tar; its reading of the header is authoritative."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._archive: TarFile | None = None

    def __enter__(self) -> _Careful:
        self._file = open(self._path, "rb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def has_globals(self) -> bool:
        """Return whether a global header was read."""
        return self._archive is not None and bool(self._archive.pax_headers)

    @property
    def end(self) -> int:
        """Position of the header after the last member."""
        assert self._archive is not None
        return self._archive.offset

    def member(self, offset: int) -> TarInfo | None:
        """Return the member whose header begins at `offset`, None at the marked end.

        Raises:
            Exception: the archive is damaged there.
        """
        if offset:
            self._file.seek(offset - 1)
            if not self._file.read(1):  # as tarfile, which looks back here after it skipped a member's bytes
                raise tarfile.ReadError("unexpected end of data")
        if self._archive is None:
            self._archive = TarFile(fileobj=self._file, tarinfo=_Member)  # reads the member at its place
        else:
            self._archive.offset = offset
            self._archive.members = []  # type: ignore[attr-defined]  # tarfile remembers every member it has read
        if self._archive.offset == 0:
            return None  # no header at all; tarfile of Python 3.10 would look back before the beginning
        return self._archive.next()


def tar_count(path: str) -> int:
    """Return about how many files an uncompressed tar has: quick, for showing the time left only."""
    count = offset = 0
    with open(path, "rb", buffering=0) as handle:
        while len(header := os.pread(handle.fileno(), BLOCK, offset)) == BLOCK and header[0]:
            count += header[156:157] in (b"0", b"\0")
            digits = header[124:136].strip(b" \0")
            if not digits.isdigit():
                break
            offset += BLOCK + -(-int(digits, 8) // BLOCK) * BLOCK
    return count


class _Damaged(tarfile.TarError):
    """Not a HeaderError: after the first member, tarfile treats those as a silent end."""


class _Member(TarInfo):
    """A member whose header is checked before use."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0 or (member.type in _EXTENDED and member.size > HEADER_LIMIT):
            raise _Damaged("a header states an impossible size")
        return member

    @classmethod
    def fromtarfile(cls, archive: TarFile) -> _Member:
        start = archive.offset
        try:
            member = super().fromtarfile(archive)
        except _END:
            raise
        except HeaderError as problem:
            raise _Damaged(f"{problem} at byte {start:,}") from None
        if member.size < 0 or archive.offset <= start:
            raise _Damaged("a header points backwards")
        return member


def _unusable(name: str, size: int, is_file: bool) -> Unusable | None:
    if is_sidecar(name):
        return Unusable(SIDECAR)
    if not is_file:
        return Unusable("not a regular file")
    if size > FILE_LIMIT:
        return Unusable("file too large", too_large().detail)
    return None


def _contents(archive: TarFile, member: TarInfo) -> bytes:
    handle = archive.extractfile(member)
    return handle.read() if handle else b""
