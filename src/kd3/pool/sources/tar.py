"""Members of tar shards, as WebDataset and img2dataset write them. Nothing is ever extracted by name."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Iterator

from kd3.pool.record import FILE_LIMIT, SIDECAR, InFile, InMemory, Location, Record, Unusable, printable
from kd3.pool.sources.names import is_sidecar

DAMAGED = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, ValueError)


def tar_members(path: str, source: str, prefix: str) -> Iterator[Record]:
    """Yield a tar's members; of a damaged one those before the damage, and one record that says so.

    From an uncompressed tar only positions are kept, and the bytes are read where they are decoded;
    a compressed one is read in order, here.
    """
    plain = path.lower().endswith(".tar")
    try:
        with tarfile.open(path, "r:" if plain else "r|*") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # tarfile remembers every member it has read
                if not member.isdir():
                    yield Record(source, prefix + printable(member.name), _location(archive, member, path, plain))
    except DAMAGED as problem:
        yield Record(source, prefix or printable(path), Unusable("archive damaged", str(problem)))


def _location(archive: tarfile.TarFile, member: tarfile.TarInfo, path: str, plain: bool) -> Location:
    if is_sidecar(member.name):
        return Unusable(SIDECAR)
    if not member.isreg() or member.issparse():
        return Unusable("not a regular file")
    if member.size > FILE_LIMIT:
        return Unusable("file too large", f"more than {FILE_LIMIT >> 20} MiB")
    if plain:
        return InFile(path, member.offset_data, member.size)
    handle = archive.extractfile(member)
    return InMemory(handle.read() if handle else b"")
