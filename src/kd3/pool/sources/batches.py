"""The batch files that CIFAR-10, CIFAR-100 and ImageNet-32/64 are published in, pickled or plain.

A pickle may hold code. These are read by an unpickler that knows numpy's arrays and the plain types and nothing
else: whatever else a file asks for, it is refused, unexecuted.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from kd3.pool.plain_pixels import InArray, Layout
from kd3.pool.record import InMemory, Record, Unusable, printable

# As they are published, and anything that calls itself a pickle.
NAME = re.compile(
    r"((train_|val_|test_)?data(_batch)?(_\d+)?|(train|val|test)_batch(_\d+)?|train|test|.*\.(pkl|pickle))", re.I
)
PLAIN_NAME = re.compile(r"(data_batch_\d+|test_batch|train|test)\.bin", re.I)
PICKLE = tuple(b"\x80" + bytes([protocol]) for protocol in (2, 3, 4, 5))
# What numpy's arrays are pickled with, by numpy 1, numpy 2 and Python 2.
KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): "numpy._core.multiarray",
    ("numpy._core.multiarray", "_reconstruct"): "numpy._core.multiarray",
    ("numpy.core.numeric", "_frombuffer"): "numpy._core.numeric",
    ("numpy._core.numeric", "_frombuffer"): "numpy._core.numeric",
    ("numpy.core.multiarray", "scalar"): "numpy._core.multiarray",
    ("numpy._core.multiarray", "scalar"): "numpy._core.multiarray",
    ("numpy", "ndarray"): "numpy",
    ("numpy", "dtype"): "numpy",
    ("_codecs", "encode"): "_codecs",  # bytes of Python 2 in a pickle of Python 3
}


class Refused(Exception):
    """A batch file that holds something else than images and numbers."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in KNOWN:
            raise Refused(f"a pickle that asks for {module}.{name}, which could be code; kd3 does not run it")
        if module == "_codecs":
            return _encode
        place = KNOWN[module, name]
        try:
            return super().find_class(place, name)
        except (ImportError, AttributeError):  # numpy 1
            return super().find_class(place.replace("numpy._core", "numpy.core"), name)


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise Refused(f"a pickle with text in {encoding!r}")
    return text.encode("latin-1")


def could_be_batch(path: str) -> bool:
    """Say whether a name is one of a batch; most have an extension of another kind."""
    name = path[path.rfind("/") + 1 :]
    if "." in name and not name.endswith((".pkl", ".pickle", ".bin")):
        return False
    return (PLAIN_NAME if name.endswith(".bin") else NAME).fullmatch(name) is not None


def is_batch(path: str) -> bool:
    """Say whether a file has the name of a batch and begins as one."""
    name = os.path.basename(path)
    if PLAIN_NAME.fullmatch(name):
        return _plain_label_bytes(path) > 0
    if not NAME.fullmatch(name):
        return False
    try:
        with open(path, "rb") as handle:
            return handle.read(2) in PICKLE
    except OSError:
        return False


def batch_images(path: str, source: str, prefix: str) -> Iterator[Record]:
    """Yield a batch's images; one that cannot be read gives one record that says why.

    A pickled one is held in memory while it is read (ImageNet-64: 1.6 GB), a plain one is not.
    """
    if labels := _plain_label_bytes(path):
        yield from _plain(path, source, prefix, labels)
        return
    try:
        with open(path, "rb") as handle:
            data, layout = _pixels(_unpickled(handle))
    except Refused as problem:
        yield Record(source, _name(path, prefix), Unusable("not an image", str(problem)))
        return
    for place, image in enumerate(data):
        yield Record(source, f"{prefix}{place:09d}", InMemory(layout.as_file(image.tobytes())))


def batch_count(path: str) -> int | None:
    """Return how many images a plain batch has; None for a pickled one, which would have to be read."""
    labels = _plain_label_bytes(path)
    return os.path.getsize(path) // (3 * 32 * 32 + labels) if labels else None


def _unpickled(handle: IO[bytes]) -> Any:
    try:
        return _PlainUnpickler(handle, encoding="latin1").load()
    except Refused:
        raise
    except Exception as problem:  # whatever its opcodes make Python and numpy raise
        raise Refused(f"a damaged pickle ({type(problem).__name__}: {problem})") from None


def _pixels(content: Any) -> tuple[np.ndarray, Layout]:
    """Return (N, 3 * S * S) uint8 and how an image lies in it."""
    data = content.get("data", content.get(b"data")) if isinstance(content, dict) else None
    if isinstance(data, list) and all(isinstance(row, np.ndarray) for row in data) and data:
        data = np.stack(data)
    if not isinstance(data, np.ndarray):
        raise Refused("a pickle without an array named 'data', as the batches of CIFAR and ImageNet-32 have")
    data = data.reshape(len(data), -1) if data.ndim == 4 and data.shape[1] == 3 else data
    side = round((data.shape[1] / 3) ** 0.5) if data.ndim == 2 else 0
    if data.dtype != np.uint8 or side < 1 or data.shape[1] != 3 * side * side:
        raise Refused(f"'data' is {data.shape} of {data.dtype}, not (N, 3 * S * S) of uint8")
    return data, Layout(side, side, 3, True)


def _plain_label_bytes(path: str) -> int:
    """Return how many label bytes stand before each image: 1 in CIFAR-10, 2 in CIFAR-100, 0 in what is neither."""
    if not PLAIN_NAME.fullmatch(os.path.basename(path)):
        return 0
    size = os.path.getsize(path)
    return next((labels for labels in (1, 2) if size and size % (3 * 32 * 32 + labels) == 0), 0)


def _plain(path: str, source: str, prefix: str, labels: int) -> Iterator[Record]:
    layout = Layout(32, 32, 3, True)
    step = layout.size + labels
    for place in range(os.path.getsize(path) // step):
        yield Record(source, f"{prefix}{place:09d}", InArray(path, place * step + labels, layout))


def _name(path: str, prefix: str) -> str:
    return prefix.rstrip("/") or printable(os.path.basename(path))
