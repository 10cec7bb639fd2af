"""Build a network from an untrusted description, in memory bounded by the size of its weights on disk."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from kd3.errors import KD3Error

BESIDE = 256 << 20  # bytes for temporary tensors of the initialisation and for position tables
TIMES = 8  # the weights' bytes on disk: they may be float16 there, and are made and copied
TENSORS = 1_000_000  # of one network
MAKERS = {"empty", "empty_strided", "zeros", "ones", "full", "rand", "randn", "randint", "eye", "arange", "linspace"}
MAKERS |= {"new_empty", "new_zeros", "new_ones", "new_full"}


class _TooLarge(BaseException):
    """No subclass of Exception: libraries that build networks replace those by their own."""


class _Bounded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts allocations before they happen."""

    def __init__(self, size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.left, self.tensors = size, TENSORS

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in MAKERS:
            self.tensors -= 1
            shape = next((item for item in args if isinstance(item, (list, tuple))), None)
            numbers = [item for item in args if isinstance(item, int)]
            self.left -= 4 * (math.prod(shape) if shape is not None else max(numbers, default=0))
            if self.left < 0 or self.tensors < 0:
                raise _TooLarge
        return func(*args, **(kwargs or {}))


@contextmanager
def bounded_by(file_size: int, *, what: str) -> Iterator[None]:
    """Limit the tensors made within the context to the size justified by `file_size` bytes of weights.

    Raises:
        KD3Error: the network needs more than that, or more than the memory; the message begins with `what`.
    """
    try:
        with _Bounded(BESIDE + TIMES * file_size):
            yield
    except (_TooLarge, MemoryError, OverflowError):
        raise KD3Error(f"{what} describes a far larger network than its weights are of") from None
