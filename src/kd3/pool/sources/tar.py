"""Members of tar shards, as WebDataset and img2dataset write them. Nothing is ever extracted by name."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from tarfile import HeaderError, TarFile, TarInfo
from typing import BinaryIO

from kd3.pool.allowed import is_remote
from kd3.pool.reasons import SIDECAR
from kd3.pool.record import FILE_LIMIT, InFile, InMemory, Location, Record, Unusable, printable, too_large
from kd3.pool.remote import streamed_remote
from kd3.pool.sources.containers import check_unpacked, first_bytes, guarded, is_labels, sidecar
from kd3.pool.sources.names import is_sidecar
from kd3.pool.sources.samples import without_masks
from kd3.pool.sources.tar_headers import BLOCK, ordinary_member
from kd3.storage.other_files import COMPRESSED

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
