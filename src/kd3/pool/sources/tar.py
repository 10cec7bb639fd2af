"""Members of tar shards, as WebDataset and img2dataset write them. Nothing is ever extracted by name."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from tarfile import HeaderError, TarFile, TarInfo

from kd3.pool.reasons import SIDECAR
from kd3.pool.record import FILE_LIMIT, InFile, InMemory, Location, Record, Unusable, printable, too_large
from kd3.pool.sources.names import is_sidecar

BLOCK = 512
HEADER_LIMIT = 1 << 20  # bytes of a long name or pax record; a hostile one asks for all memory
_END: type[Exception] = tarfile.EOFHeaderError  # type: ignore[attr-defined]  # the marked end
_EXTENDED = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip


def tar_members(path: str, source: str, prefix: str) -> Iterator[Record]:
    """Yield a tar's members; of a damaged one those before the damage, and one record that says so.

    From an uncompressed tar only positions are kept, and the bytes are read where they are decoded;
    a compressed one is read in order, here.
    """
    plain = path.lower().endswith(".tar")
    try:
        with tarfile.open(path, "r:" if plain else "r|*", tarinfo=_Member) as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # tarfile remembers every member it has read
                if not member.isdir():
                    key = prefix + printable(member.name.removeprefix("./"))
                    yield Record(source, key, _location(archive, member, path, plain))
    except Exception as problem:
        # Besides its own errors tarfile passes on those of zlib, bz2 and lzma, and IndexError,
        # RecursionError, MemoryError where headers are made to harm.
        key = prefix.rstrip("/") or printable(os.path.basename(path))
        yield Record(source, key, Unusable("archive damaged", str(problem) or type(problem).__name__))


def tar_count(path: str) -> int:
    """Return about how many files an uncompressed tar has: quick, for showing the time left only."""
    count = offset = 0
    with open(path, "rb", buffering=0) as handle:
        while len(header := handle.read(BLOCK)) == BLOCK and header[0]:
            count += header[156:157] in (b"0", b"\0")
            digits = header[124:136].strip(b" \0")
            if not digits.isdigit():
                break
            offset += BLOCK + -(-int(digits, 8) // BLOCK) * BLOCK
            handle.seek(offset)
    return count


class _Damaged(tarfile.TarError):
    """Not a HeaderError: of those after the first member tarfile makes a silent end."""


class _Member(TarInfo):
    """A member whose header is looked at before it is believed."""

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


def _location(archive: TarFile, member: TarInfo, path: str, plain: bool) -> Location:
    if is_sidecar(member.name):
        return Unusable(SIDECAR)
    if not member.isreg() or member.issparse():
        return Unusable("not a regular file")
    if member.size > FILE_LIMIT:
        return Unusable("file too large", too_large().detail)
    if plain:
        return InFile(path, member.offset_data, member.size)
    handle = archive.extractfile(member)
    return InMemory(handle.read() if handle else b"")
