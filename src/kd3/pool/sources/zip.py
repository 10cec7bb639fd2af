"""Members of zip files. Nothing is ever extracted by name."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Iterator

from kd3.pool.record import FILE_LIMIT, SIDECAR, InZip, Location, Record, Unusable, printable
from kd3.pool.sources.names import is_sidecar


def zip_members(path: str, source: str, prefix: str) -> Iterator[Record]:
    """Yield a zip's members in the order of its directory; a damaged one gives one record that says so."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as problem:
        yield Record(source, prefix or printable(path), Unusable("archive damaged", str(problem)))
        return
    for place, member in enumerate(members):
        if not member.is_dir():
            yield Record(source, prefix + printable(member.filename), _location(member, path, place))


def _location(member: zipfile.ZipInfo, path: str, place: int) -> Location:
    mode = member.external_attr >> 16
    if is_sidecar(member.filename):
        return Unusable(SIDECAR)
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return Unusable("not a regular file")
    if member.flag_bits & 1:
        return Unusable("encrypted")
    if member.file_size > FILE_LIMIT:
        return Unusable("file too large", f"more than {FILE_LIMIT >> 20} MiB")
    return InZip(path, place)
