"""Pickles of arrays are read as pickle itself would; any other request has no effect."""

import collections
import contextlib
import io
import pickle
import pickletools
import sys
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_containers import python2_pickle

from kd3.sources.containers import UnsafePickle
from kd3.sources.safe_pickle import LONG, Array, Damaged, Span, read_pickle

BIG = np.random.default_rng(0).integers(0, 256, (3, LONG), dtype=np.uint8)
SMALL = np.arange(6, dtype=np.uint8).reshape(2, 3)


def read(data: bytes) -> Any:
    return read_pickle(io.BytesIO(data))


def restored(array: Array, data: bytes) -> np.ndarray:
    """The array, by what was read of it and the bytes that were left in the file."""
    raw = array.data
    assert not isinstance(raw, list)
    contents = data[raw.offset : raw.offset + raw.size] if isinstance(raw, Span) else bytes(raw)
    return np.frombuffer(contents, array.dtype).reshape(array.shape, order="F" if array.fortran else "C")


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_are_those_that_were_written(protocol: int) -> None:
    written = {
        "big": BIG,
        "small": SMALL,
        "mean": np.linspace(0, 1, 7),
        "fortran": np.asfortranarray(SMALL),
        "wide": SMALL.astype(">u2"),
        "none": np.zeros((0, 3), dtype=np.uint8),
        b"words": [1, -70000, 2**40, 0.5, None, True, "ü", b"b", (), (1, 2, 3), (1, 2, 3, 4), {}, {"a": []}],
        "scalar": np.int64(3),
        "x" * 300: bytearray(b""),
    }
    data = pickle.dumps(written, protocol)
    found = read(data)
    assert list(found) == list(written)
    assert found[b"words"] == written[b"words"]
    assert found["scalar"] is None
    for name, array in written.items():
        if isinstance(array, np.ndarray):
            np.testing.assert_array_equal(restored(found[name], data), array)
            assert found[name].dtype == array.dtype
    # Text, which protocol 2 makes of bytes, cannot stay in the file.
    assert isinstance(found["big"].data, Span) == (protocol > 2)


@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_numpy_before_and_since_2_is_understood(module: str) -> None:
    for protocol in (2, 3):
        data = pickle.dumps(BIG, protocol).replace(b"numpy._core", module.encode())
        np.testing.assert_array_equal(restored(read(data), data), BIG)


def test_python_2_is_understood_and_our_copy_of_it_is_a_pickle() -> None:
    batch = {b"data": BIG, b"labels": [3, 9], b"name": b"train"}
    data = python2_pickle(batch)
    loaded = pickle.loads(data, encoding="bytes")
    np.testing.assert_array_equal(loaded[b"data"], BIG)
    found = read(data)
    np.testing.assert_array_equal(restored(found["data"], data), BIG)
    assert (found["labels"], found["name"]) == ([3, 9], "train")


@pytest.mark.parametrize("program", [b"(lp0\nI1\na.", b"(dp0\nS'a'\nI01\ns.", b"(V\xfc\nI2\nF0.5\ntp3\n0g3\n."])
def test_commands_of_protocol_0_are_read(program: bytes) -> None:
    assert read(program) == pickle.loads(program)


def test_what_is_shared_is_remembered() -> None:
    shared = [1, 2]
    assert read(pickle.dumps([shared, (shared, "a"), "a"], 4)) == [shared, (shared, "a"), "a"]


class Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


CALLED: list[str] = []


@pytest.mark.parametrize(
    ("value", "asked"),
    [
        (Calls(eval, "CALLED.append('eval')"), "builtins.eval"),
        (Calls(CALLED.append, "append"), "builtins.getattr"),
        (Calls(exec, "CALLED.append('exec')"), "builtins.exec"),
        (Calls(np.load, "x.npy"), "numpy.load"),
        (np.ma.masked_array([1]), "numpy.ma"),
        (collections.OrderedDict(a=1), "collections.OrderedDict"),
        (Calls(sys.exit, 3), "sys.exit"),
        ({1, 2}, "builtins.set"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_whatever_else_is_asked_for_is_named_and_not_done(value: Any, asked: str, protocol: int) -> None:
    if isinstance(value, set) and protocol == 5:
        asked = "objects of classes"  # it has a command of its own
    with pytest.raises(UnsafePickle) as problem:
        read(pickle.dumps({"data": [value]}, protocol))
    assert asked.removeprefix("builtins.") in str(problem.value)
    assert CALLED == []


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\2cnumpy\ndtype\n)R.",
        b"\x80\2cnumpy\nndarray\n(tR.",
        b"\x80\2c_codecs\nencode\n(X\1\0\0\0aX\5\0\0\0rot13tR.",
        b"\x80\2cnumpy\ndtype\n(X\3\0\0\0x,yK\0K\1tR.",
        b"\x80\2(cos\nsystem\nX\2\0\0\0lso.",
        b"\x80\2(ios\nsystem\n.",
        b"\x80\2cnumpy\nndarray\n)\x81.",
        b"\x80\2]}b.",
        b"\x80\2P1\n.",
        b"\x80\2\x82\1.",
        b"\x80\2cnumpy\nndarray\n}X\4\0\0\0nameK\1sb.",
        b"\x80\2]]e.",
        b"\x80\2K\1e.",
        b"\x80\2}(K\1u.",
        b"\x80\2h\7.",
        b"\x80\2.",
        b"\x80\2",
        b"",
        b"\x80\2T\xff\xff\xff\xff.",
        b"\x80\2\x8e\xff\xff\xff\xff\xff\xff\xff\xff.",
        b"\x80\2X\xff\xff\xff\x7f.",
        b"\x80\2}]K\1s.",
        b"\x80\5\x94\x93.",
        b"\x80\5]]\x93.",
    ],
)
def test_odd_programs_are_refused(program: bytes) -> None:
    with pytest.raises((UnsafePickle, Damaged)):
        read(program)


DEEP = b"\x80\2)" + b"\x85" * 200_000 + b"q\x3c"  # tuples in tuples, remembered as 60
WIDE = b"\x80\2]q\0" + b"".join(b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(60))  # 2 to the 60th lists


@pytest.mark.timeout(60)
@pytest.mark.parametrize("nested", [DEEP, WIDE])
@pytest.mark.parametrize(
    "use",
    [
        b"}h\x3cK\1s.",  # as a key
        b"cnumpy\ndtype\nh\x3cR.",  # as arguments
        b"h\x3ch\x3c\x93.",  # as a name
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0K\0tR(K\1h\x3cNNNtb.",  # as a shape
        b"cnumpy\ndtype\n(X\2\0\0\0u1tR(K\3h\x3ctb" + b"cnumpy\ndtype\n)R.",  # as an order of bytes
    ],
)
def test_endless_nesting_harms_nothing(nested: bytes, use: bytes) -> None:
    with pytest.raises((UnsafePickle, Damaged)):
        read(nested + use)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_changed_bytes_never_raise_anything_else(data: st.DataObject) -> None:
    whole = pickle.dumps({"data": SMALL, "labels": [1, 2], "n": np.float32(1)}, data.draw(st.integers(2, 5)))
    broken = bytearray(whole)
    for place in data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=4)):
        broken[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(UnsafePickle, Damaged):
        read(bytes(broken))


def test_an_escape_that_python_would_not_write_is_read_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(b"S'a\\u'\n.") == "a\\u"


def test_every_command_of_pickle_has_been_thought_of() -> None:
    from kd3.sources import safe_pickle

    refused = {
        "PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "NEWOBJ", "NEWOBJ_EX", "OBJ", "EMPTY_SET", "FROZENSET",
        "ADDITEMS", "NEXT_BUFFER", "READONLY_BUFFER", "STOP",
    }  # fmt: skip
    known = {
        opcode.name
        for opcode in pickletools.opcodes
        if opcode.name in safe_pickle._VALUES
        or opcode.name in safe_pickle._CONSTANTS
        or hasattr(safe_pickle._Machine, f"_{opcode.name.lower()}")
    }
    assert known | refused == {opcode.name for opcode in pickletools.opcodes}
    assert not known & refused
