"""Members of zip files. Nothing is ever extracted by name."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Iterator

from kd3.pool.reasons import SIDECAR
from kd3.pool.record import FILE_LIMIT, InZip, Location, Record, Unusable, open_zip, printable, too_large, unpacked
from kd3.pool.remote import is_remote, opened_remote
from kd3.pool.sources.containers import guarded, is_labels, sidecar
from kd3.pool.sources.names import is_sidecar


def zip_members(path: str, source: str, prefix: str) -> Iterator[Record]:
    """Yield a zip's members in the order of its directory; a damaged one gives one record that says so."""
    found = _in_remote(path) if is_remote(path) else _in_file(path)
    members = (Record(source, prefix + printable(name.removeprefix("./")), location) for name, location in found)
    return guarded(members, path, source, prefix)


def _in_file(path: str) -> Iterator[tuple[str, Location]]:
    for place, member in enumerate(open_zip(path).infolist()):
        if not member.is_dir():
            is_label = is_labels(member.filename, member.file_size) and not member.flag_bits & 1
            at = InZip(path, place)
            yield member.filename, (sidecar(at) if is_label else _unusable(member)) or at


def _in_remote(path: str) -> Iterator[tuple[str, Location]]:
    """Yield names and contents in the order of the directory, which is that of the contents as a rule."""
    with opened_remote(path) as file, zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                yield member.filename, _unusable(member) or unpacked(archive, member)


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
