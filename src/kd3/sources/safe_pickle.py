"""Pickles read without running them: containers, numbers, texts and NumPy arrays, and nothing else.

Reader of pickles that runs nothing: containers, numbers, texts and NumPy arrays only. A pickle is a program for a
small machine, and one of its commands calls any named function. Here nothing can be called: of the handful of names
that plain data and arrays are written with (by Python 2 and 3, by NumPy before and since 2.0) each has its meaning
below, and any other ends the reading. The contents are never printed, hashed or compared as a whole, since a few bytes
can describe endless nesting. Long strings of bytes stay in the file, so that memory does not grow with the arrays.
"""

from __future__ import annotations

import os
import pickletools
import re
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from kd3.sources.containers import UnsafePickle

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


_MODULES = {
    "numpy.core.multiarray": "multiarray",
    "numpy._core.multiarray": "multiarray",
    "numpy.core.numeric": "numeric",
    "numpy._core.numeric": "numeric",
    "__builtin__": "builtins",
}
_NAMES = {
    "numpy ndarray", "numpy dtype", "multiarray _reconstruct", "multiarray scalar", "numeric _frombuffer",
    "_codecs encode", "builtins bytes", "builtins bytearray",
}  # fmt: skip


@dataclass(slots=True)
class Array:
    """A NumPy array: its description, and the place of its bytes."""

    shape: tuple[int, ...] = ()
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype("O"))
    fortran: bool = False
    data: bytes | Span = b""


@dataclass(frozen=True, slots=True)
class _Name:
    """A class or function that the pickle named; here it is no more than its name."""

    name: str


@dataclass(slots=True)
class _Dtype:
    name: str
    order: str = "|"

    def read(self) -> np.dtype[Any]:
        try:
            return np.dtype(self.order.replace("|", "") + self.name)
        except Exception:
            raise Damaged(f"there is no dtype {self.name!r}") from None


_MARK = object()
_DTYPE = re.compile(r"[a-zA-Z?]\d{0,9}")


def read_pickle(file: BinaryIO) -> Any:
    """Return the contents of a pickle: None, bool, int, float, str, bytes, list, tuple, dict and `Array`.

    Strings of Python 2 are str of the characters 0 to 255. Sets and objects do not occur. Scalars of NumPy are None.

    Raises:
        UnsafePickle: it names something else, given in the message.
        Damaged: it is no pickle, or a damaged one.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "invalid .*escape sequence")  # of the file's text, not of our code
            return _Machine().run(commands(file))
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, AssertionError, struct.error) as problem:
        raise Damaged(f"it is no sound pickle ({type(problem).__name__}: {problem})"[:200]) from None


class _Machine:
    """The pickle machine, without the commands that make objects."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, commands: Iterator[tuple[str, Any]]) -> Any:
        for command, argument in commands:
            if command == "STOP":
                return self.stack.pop()
            if command in _VALUES:
                self.stack.append(argument)
            elif command in _CONSTANTS:
                self.stack.append(_CONSTANTS[command]())
            else:
                getattr(self, f"_{command.lower()}", self._unknown)(argument)
        raise Damaged("it ends too early")

    def _unknown(self, _: Any) -> None:
        raise UnsafePickle("it holds objects of classes, not plain arrays")

    def _proto(self, _: Any) -> None:
        pass

    _frame = _proto

    def _mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _since_mark(self) -> list[Any]:
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise Damaged("a mark is missing")
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def _pop_mark(self, _: Any) -> None:
        self._since_mark()

    # Memory of what was there before.

    def _put(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    _binput = _long_binput = _put

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _get(self, place: int) -> None:
        self.stack.append(self.memo[place])

    _binget = _long_binget = _get

    # Containers.

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _tuple1(self, _: Any) -> None:
        self._tuple_of(1)

    def _tuple2(self, _: Any) -> None:
        self._tuple_of(2)

    def _tuple3(self, _: Any) -> None:
        self._tuple_of(3)

    def _tuple_of(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.stack.append(items)

    def _list(self, _: Any) -> None:
        self.stack.append(self._since_mark())

    def _append(self, _: Any) -> None:
        item = self.stack.pop()
        self._top(list).append(item)

    def _appends(self, _: Any) -> None:
        items = self._since_mark()
        self._top(list).extend(items)

    def _dict(self, _: Any) -> None:
        items = self._since_mark()
        self.stack.append(_pairs(items))

    def _setitem(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._top(dict).update(_pairs([key, value]))

    def _setitems(self, _: Any) -> None:
        items = self._since_mark()
        self._top(dict).update(_pairs(items))

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise Damaged(f"a {kind.__name__} is missing")
        return self.stack[-1]

    # Names, and the few that mean something.

    def _global(self, name: str) -> None:
        self._named(*name.split(" ", 1))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._named(module, name)

    def _inst(self, name: str) -> None:
        self._global(name)  # objects of old classes: nothing that is known here is one
        self._unknown(None)

    def _named(self, module: str, name: str) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise Damaged("a name is no text")
        known = f"{_MODULES.get(module, module)} {name}"
        if known not in _NAMES:
            raise UnsafePickle(f"it asks for {module}.{name}"[:200])
        self.stack.append(_Name(known))

    def _reduce(self, _: Any) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        self.stack.append(_meaning(called, arguments))

    def _build(self, _: Any) -> None:
        state, built = self.stack.pop(), self.stack[-1]
        if isinstance(built, Array):
            _, shape, dtype, fortran, data = state
            built.shape, built.dtype, built.fortran = _shape(shape), dtype.read(), bool(fortran)
            built.data = data.encode("latin-1") if isinstance(data, str) else data
        elif isinstance(built, _Dtype):
            built.order = state[1] if state[1] in ("<", ">", "=") else "|"
        else:
            self._unknown(None)


def _meaning(called: Any, arguments: Any) -> Any:
    """Return the meaning of a call, which is never made."""
    match called, arguments:
        case _Name("multiarray _reconstruct"), (_Name("numpy ndarray"), _, _):
            return Array()
        case _Name("numpy dtype"), (str(name), *_) if _DTYPE.fullmatch(name):
            return _Dtype(name)
        case _Name("numeric _frombuffer"), (data, _Dtype() as dtype, shape, order):
            return Array(_shape(shape), dtype.read(), order == "F", data)
        case _Name("multiarray scalar"), _:
            return None
        case _Name("_codecs encode"), (str(text), str(encoding)) if encoding.replace("-", "") == "latin1":
            return text.encode("latin-1")
        case _Name("builtins bytes" | "builtins bytearray"), ():
            return b""
        case _Name(name), _:
            raise Damaged(f"it makes an odd use of {name.replace(' ', '.')}")
    raise UnsafePickle("it holds objects of classes, not plain arrays")


def _shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple) or not all(type(length) is int and length >= 0 for length in shape):
        raise Damaged("an array has no shape")
    return shape


def _pairs(items: list[Any]) -> dict[Any, Any]:
    keys = items[::2]
    if not all(isinstance(key, (str, bytes, int, float, type(None))) for key in keys):
        raise Damaged("a key is no name")  # the hash of tuples in tuples in tuples would end this process
    return dict(zip(keys, items[1::2], strict=True))


_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_CONSTANTS: dict[str, Any] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
