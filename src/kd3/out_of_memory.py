"""Out-of-memory errors in words: the requested amount, and remedies."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from kd3.errors import KD3Error

ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+ ?(?:bytes|[KMGT]iB))|you tried to allocate (\d+) bytes")
THERE = re.compile(r"total capacity of ([\d.]+ ?[KMGT]iB) of which ([\d.]+ ?(?:bytes|[KMGT]iB)) is free")
HOST = "can't allocate memory"


@contextmanager
def out_of_memory_told(what: str, *, less: str) -> Iterator[None]:
    """Convert out-of-memory errors to KD3Error.

    Args:
        what: the work in progress.
        less: how to reduce its need.

    Raises:
        KD3Error: there was not enough memory.
    """
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as problem:
        raise KD3Error(in_words(str(problem), what=what, less=less)) from problem
    except RuntimeError as problem:
        if HOST not in str(problem):
            raise
        raise KD3Error(in_words(str(problem), what=what, less=less, where="memory of the machine")) from problem


def in_words(message: str, *, what: str, less: str, where: str = "GPU's memory") -> str:
    """Return the sentence.

    >>> in_words("Tried to allocate 2.00 GiB.", what="a step", less="use a smaller batch")
    "the GPU's memory is not enough for a step: 2.00 GiB more were asked for; use a smaller batch"
    """
    asked, there = ASKED.search(message), THERE.search(message)
    told = ""
    if asked:
        size = asked[1] or f"{int(asked[2]) / 2**30:.2f} GiB"
        told = f": {size} more were asked for" + (f", where of {there[1]} {there[2]} are free" if there else "")
    return f"the {where} is not enough for {what}{told}; {less}"
