"""A quick reader of ordinary headers in an uncompressed tar, which leaves all others to `tarfile`.

`tarfile` needs some 20 microseconds a header, which for a million small images is more than their
share. Ordinary is a regular file or a folder with plain numbers, alone or behind a GNU long name or a pax
header that says no more than path and times. All that is ordinary means the same to `tarfile`; what is not
(links, sparse files, global headers, damage, traps) is not judged here.
"""

from __future__ import annotations

import os
import re
import tarfile
import zlib
from typing import NamedTuple

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
