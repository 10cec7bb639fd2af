"""Build a network from another person's description, in no more memory than its weights on disk account for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from kd3.errors import KD3Error

BESIDE = 256 << 20  # bytes of tensors beside the weights: what initialising them needs for a moment, tables of places
TIMES = 8  # as many bytes as the weights have on disk: they may be halves there, and are made and copied
TENSORS = 1_000_000  # that a network may be made of
MAKERS = {"empty", "empty_strided", "zeros", "ones", "full", "rand", "randn", "randint", "eye", "arange", "linspace"}
MAKERS |= {"new_empty", "new_zeros", "new_ones", "new_full"}


class _TooLarge(BaseException):
    """Not an Exception: libraries that build networks turn those into words of their own."""


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
    """Let tensors be made within, as many as `file_size` bytes of weights can account for.

    Raises:
        KD3Error: more are asked for, or more than there is memory for; told of `what`.
    """
    try:
        with _Bounded(BESIDE + TIMES * file_size):
            yield
    except (_TooLarge, MemoryError, OverflowError):
        raise KD3Error(f"{what} describes a far larger network than its weights are of") from None
