"""The commands of a pickle, one after the other; long strings of bytes are left in the file."""

from __future__ import annotations

import os
import pickletools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

LONG = 1 << 12  # bytes; shorter strings are read
TEXT_LIMIT = 64 << 20  # bytes of a text; a longer one is an array that Python 3 wrote for Python 2
_COUNTED = {"BINSTRING": "<i", "BINBYTES": "<I", "BINBYTES8": "<Q", "BYTEARRAY8": "<Q", "BINUNICODE": "<I"}
_TEXTS = {"BINSTRING", "BINUNICODE"}
_OPCODES = {code.code.encode("latin-1"): code for code in pickletools.opcodes}


class Damaged(Exception):
    """The pickle ends too early or makes no sense."""


@dataclass(frozen=True, slots=True)
class Span:
    """A long string of bytes that was left in the file."""

    offset: int
    size: int


def commands(file: BinaryIO) -> Iterator[tuple[str, Any]]:
    """Yield names and arguments of the commands, long bytes as a `Span`."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    while True:
        opcode = _OPCODES[file.read(1)]
        if opcode.name not in _COUNTED:
            yield opcode.name, opcode.arg.reader(file) if opcode.arg else None
        else:
            (size,) = struct.unpack(_COUNTED[opcode.name], file.read(struct.calcsize(_COUNTED[opcode.name])))
            place = file.tell()
            if not 0 <= size <= end - place:
                raise Damaged(f"{size:,} bytes are announced, {end - place:,} are there")
            if size <= LONG or opcode.name == "BINUNICODE":
                if size > TEXT_LIMIT:
                    raise Damaged("it holds its arrays as text; write it once more with pickle.dump(..., protocol=4)")
                data = file.read(size)
                yield opcode.name, _text(opcode.name, data) if opcode.name in _TEXTS else data
            else:
                file.seek(size, 1)
                yield opcode.name, Span(place, size)
        if opcode.name == "STOP":
            return


def _text(command: str, data: bytes) -> str:
    return data.decode("latin-1") if command == "BINSTRING" else data.decode("utf-8", "surrogatepass")
