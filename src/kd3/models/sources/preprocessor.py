"""What the image processor of a transformers model does to the pixels, as mean and std of RGB in [0, 1].

Read from its file: the processors themselves need torchvision, and fail without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LEVELS = 255.0
TWICE_NORMALISED = "EfficientNetImageProcessor"
FLIPPED = "MobileViTImageProcessor"


def normalisation(processor: Mapping[str, Any]) -> dict[str, Any]:
    """Return `mean` and `std`, as far as the file says what is done.

    A processor may scale 0 to 255 by a factor, take 1 off, subtract a mean, divide by a std, and divide by it once
    more: all of it is (x - mean) / std for some mean and std.
    """
    kind = _kind(processor)
    normalises = bool(processor.get("do_normalize", "image_mean" in processor))
    if not processor and kind == "":
        return {}
    scale = LEVELS
    if processor.get("do_rescale", True):
        scale = LEVELS * float(processor.get("rescale_factor") or 1 / LEVELS)
    less = 1.0 if processor.get("rescale_offset") else 0.0
    if not normalises:
        return {"mean": [less / scale] * 3, "std": [1 / scale] * 3}
    means, deviations = _three(processor.get("image_mean")), _three(processor.get("image_std"))
    if means is None or deviations is None:
        return {}
    again = kind == TWICE_NORMALISED and bool(processor.get("include_top", True))
    return {
        "mean": [(less + mean) / scale for mean in means],
        "std": [deviation**2 / scale if again else deviation / scale for deviation in deviations],
    }


def takes_bgr(processor: Mapping[str, Any]) -> bool:
    """Say whether the network is given blue, green, red."""
    return bool(processor.get("do_flip_channel_order", _kind(processor) == FLIPPED))


def side(size: Any) -> int | None:
    """Return the side in pixels that a processor's or a configuration's size says."""
    if isinstance(size, Mapping):
        size = size.get("height") or size.get("shortest_edge")
    if isinstance(size, (list, tuple)):
        size = size[0] if size else None
    return int(size) if size else None


def _kind(processor: Mapping[str, Any]) -> str:
    named = processor.get("image_processor_type") or processor.get("feature_extractor_type") or ""
    return str(named).removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")


def _three(values: Any) -> list[float] | None:
    if isinstance(values, (int, float)):
        values = [values] * 3
    return [float(value) for value in values] if isinstance(values, (list, tuple)) and len(values) == 3 else None
