"""Members of zip files. Nothing is ever extracted by name."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Callable, Iterator

from kd3.sources.containers import check_unpacked, guarded, is_labels, sidecar
from kd3.sources.files import is_sidecar
from kd3.sources.record import (
    FILE_LIMIT,
    SIDECAR,
    InZip,
    Location,
    Record,
    Unusable,
    open_zip,
    printable,
    too_large,
    unpacked,
)
from kd3.sources.remote import opened_remote
from kd3.sources.trust import is_remote

LOCAL_HEADER = 30  # bytes before a member, without its name


def zip_members(path: str, source: str, prefix: str, *, limit: int | None = None) -> Iterator[Record]:
    """Yield a zip's members in the order of its directory; a damaged one gives one record that says so."""
    found = _in_remote(path) if is_remote(path) else _in_file(path, limit)
    members = (Record(source, prefix + printable(name.removeprefix("./")), location) for name, location in found)
    return guarded(members, path, source, prefix, limit)


def _in_file(path: str, limit: int | None) -> Iterator[tuple[str, Location]]:
    archive, total = open_zip(path), 0
    _check_apart(archive)
    named = _names(archive)
    for place, member in enumerate(archive.infolist()):
        if not member.is_dir():
            at = InZip(path, place)
            if is_labels(member.filename, member.file_size) and not member.flag_bits & 1:
                found: Location = sidecar(at)
            else:
                found = _unusable(member) or at
            total += 0 if isinstance(found, Unusable) and found.contents is None else member.file_size
            check_unpacked(total, limit)
            yield named(member), found


def _in_remote(path: str) -> Iterator[tuple[str, Location]]:
    """Yield names and contents in the order of the directory, which is that of the contents as a rule."""
    with opened_remote(path) as file, zipfile.ZipFile(file) as archive:
        _check_apart(archive)
        named = _names(archive)
        for member in archive.infolist():
            if not member.is_dir():
                if is_labels(member.filename, member.file_size) and not member.flag_bits & 1:
                    yield named(member), sidecar(unpacked(archive, member))
                else:
                    yield named(member), _unusable(member) or unpacked(archive, member)


def _names(archive: zipfile.ZipFile) -> Callable[[zipfile.ZipInfo], str]:
    """Return what names a zip's members: where none has a slash, a backslash, as Windows wrote them, ends a folder."""
    if any("/" in member.filename for member in archive.infolist()):
        return lambda member: member.filename
    return lambda member: member.filename.replace("\\", "/")


def _check_apart(archive: zipfile.ZipFile) -> None:
    """Refuse members that share their bytes, by which a small file unpacks to any size."""
    end = 0
    for member in sorted(archive.infolist(), key=lambda member: member.header_offset):
        if member.header_offset < end:
            raise zipfile.BadZipFile(f"its members overlap, first {member.filename[:80]!r}")
        end = member.header_offset + LOCAL_HEADER + member.compress_size
    if end > archive.start_dir:
        raise zipfile.BadZipFile("a member reaches into the directory")


def zip_count(path: str) -> int:
    """Return how many files a zip has."""
    return sum(not member.is_dir() for member in open_zip(path).infolist())


def _unusable(member: zipfile.ZipInfo) -> Unusable | None:
    mode = member.external_attr >> 16
    if is_sidecar(member.filename):
        return Unusable(SIDECAR)
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        return Unusable("not a regular file")
    if member.flag_bits & 1:
        return Unusable("encrypted")
    if member.file_size > FILE_LIMIT:
        return Unusable("file too large", too_large().detail)
    return None
