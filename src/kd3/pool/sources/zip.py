"""Members of zip files. Nothing is ever extracted by name."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterator

from kd3.pool.reasons import SIDECAR
from kd3.pool.record import FILE_LIMIT, InZip, Location, Record, Unusable, open_zip, printable, too_large
from kd3.pool.sources.names import is_sidecar


def zip_members(path: str, source: str, prefix: str) -> Iterator[Record]:
    """Yield a zip's members in the order of its directory; a damaged one gives one record that says so."""
    try:
        members = open_zip(path).infolist()
    except Exception as problem:
        # BadZipFile, and also struct.error, UnicodeError, NotImplementedError, MemoryError.
        key = prefix.rstrip("/") or printable(os.path.basename(path))
        yield Record(source, key, Unusable("archive damaged", str(problem) or type(problem).__name__))
        return
    for place, member in enumerate(members):
        if not member.is_dir():
            key = prefix + printable(member.filename.removeprefix("./"))
            yield Record(source, key, _location(member, path, place))


def zip_count(path: str) -> int:
    """Return how many files a zip has."""
    return sum(not member.is_dir() for member in open_zip(path).infolist())


def _location(member: zipfile.ZipInfo, path: str, place: int) -> Location:
    mode = member.external_attr >> 16
    if is_sidecar(member.filename):
        return Unusable(SIDECAR)
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return Unusable("not a regular file")
    if member.flag_bits & 1:
        return Unusable("encrypted")
    if member.file_size > FILE_LIMIT:
        return Unusable("file too large", too_large().detail)
    return InZip(path, place)
