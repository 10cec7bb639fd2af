"""transformers beside a torchvision that does not fit its torch: as if there were none.

transformers looks whether torchvision is installed, not whether it can be imported, and then fails at every image
model. It remembers the answer, so that it is enough to hide torchvision while it looks.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from unittest import mock

from kd3.models.sources.library import library

HIDDEN = ("torchvision", "timm")  # timm imports torchvision
ANSWERS = ("is_torchvision_available", "is_torchvision_v2_available", "is_timm_available")


def transformers() -> Any:
    """Import transformers.

    Raises:
        KD3Error: it is not installed, or cannot be imported.
    """
    if "transformers" in sys.modules or not _cannot_be_imported("torchvision"):
        return library("transformers", extra="hf")
    with _hidden():
        found = library("transformers", extra="hf")
        for name in ANSWERS:
            getattr(found.utils.import_utils, name, bool)()
    return found


def _cannot_be_imported(name: str) -> bool:
    if name in sys.modules or importlib.util.find_spec(name) is None:
        return False
    try:
        import_module(name)
    except Exception:  # an operator that is missing is a RuntimeError
        for part in [part for part in sys.modules if part.partition(".")[0] == name]:
            del sys.modules[part]
        return True
    return False


@contextmanager
def _hidden() -> Iterator[None]:
    find = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> Any:
        return None if name.partition(".")[0] in HIDDEN else find(name, package)

    with mock.patch("importlib.util.find_spec", without):
        yield
