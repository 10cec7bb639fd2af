"""torchvision beside a CPU build of torch: usable once the operators that it lacks are declared."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from functools import cache

import pytest

from kd3.models.libraries.transformers import transformers_library

OPERATORS = ("nms", "qnms")


@cache
def torchvision_usable() -> bool:
    """Import torchvision, with stand-ins for its compiled operators where its own cannot be loaded."""
    import torch

    if importlib.util.find_spec("torchvision") is None:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            importlib.import_module("torchvision")
            return True
        except RuntimeError:
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[name]
        global _library
        _library = torch.library.Library("torchvision", "DEF")
        for operator in OPERATORS:
            _library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        try:
            importlib.import_module("torchvision")
            return True
        except Exception:
            return False


def need(name: str) -> None:
    """Skip a test where a library of models is not there."""
    if name == "transformers":
        if importlib.util.find_spec(name) is None:
            pytest.skip("transformers is not installed")
        transformers_library()
    if name in ("torchvision", "timm"):
        if not torchvision_usable():
            pytest.skip("torchvision is not installed, or does not fit this torch")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip(name)
