"""Image preparation of a transformers model, read from its `preprocessor_config.json`.

The library's own image processors need torchvision or one framework; this reads their settings from the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kd3.models.sources.facts import RESAMPLING, Facts, cropped, squashed

# Settings that the file may omit, for families with unusual defaults.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "MobileViT": {"do_normalize": False, "do_flip_channel_order": True},
    "EfficientNet": {"do_center_crop": False, "include_top": True},
    "Beit": {"do_center_crop": False},
}
_CONVNEXT = "ConvNext"  # below this size, resizes by 1 / crop_pct and crops the centre
_CONVNEXT_SQUASHES_FROM = 384
_CONVNEXT_SHARE = 224 / 256


def facts_of_processor(values: Mapping[str, Any]) -> Facts:
    """Convert a processor's file to the mean, std, size and colours of a teacher's description.

    A processor makes y = (k u - o - m) / s of u, an RGB value in [0, 1]: k = 255 times its rescale factor (255 where
    it does not rescale), o = 1 where it moves the range to [-1, 1], m and s its mean and std. So mean = (o + m) / k
    and std = s / k. EfficientNet divides by its std a second time.
    """
    kind = str(values.get("image_processor_type") or values.get("feature_extractor_type") or "")
    defaults = next((known for family, known in _DEFAULTS.items() if kind.startswith(family)), {})
    values = {**defaults, **values}
    side, preparation = _size(kind, values)
    settings: dict[str, Any] = {"input_size": side} if side else {}
    settings |= _normalisation(kind, values)
    if values.get("do_flip_channel_order"):
        settings["colours"] = "bgr"
    return Facts(settings, preparation)


def _normalisation(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    rescales = values.get("do_rescale", True)
    scale = 255 * float(values.get("rescale_factor", 1 / 255)) if rescales else 255.0
    offset = 1.0 if rescales and values.get("rescale_offset") else 0.0
    mean, std = [0.0] * 3, [1.0] * 3
    twice = kind.startswith("EfficientNet") and values.get("include_top")
    if values.get("do_normalize", True) or twice:
        said_mean, said_std = _three(values.get("image_mean")), _three(values.get("image_std"))
        if said_std is None or said_mean is None:
            return {}  # the user has to give them
        if values.get("do_normalize", True):
            mean, std = said_mean, said_std
        if twice:
            std = [first * second for first, second in zip(std, said_std, strict=True)]
    return {
        "mean": [_plain((offset + value) / scale) for value in mean],
        "std": [_plain(value / scale) for value in std],
    }


def _plain(value: float) -> float:
    """Return a number without the rounding noise of a division by 255 and back."""
    return float(f"{value:.9g}")


def _three(values: Any) -> list[float] | None:
    if isinstance(values, (int, float)):
        return [float(values)] * 3
    if isinstance(values, Sequence) and not isinstance(values, str) and len(values) == 3:
        return [float(value) for value in values]
    return None


def _size(kind: str, values: Mapping[str, Any]) -> tuple[int | None, str]:
    """Return the side of the output, and its resizing in words."""
    size, crop = values.get("size"), values.get("crop_size")
    crops = bool(values.get("do_center_crop", crop is not None)) and crop is not None
    resizes = values.get("do_resize", True)
    how = RESAMPLING.get(values.get("resample", -1), "")
    side = side_of(crop) if crops else side_of(size) if resizes else None
    if side is None:
        return None, ""
    if not resizes:
        return side, f"the middle {side} x {side}"
    if kind.startswith(_CONVNEXT):
        if side >= _CONVNEXT_SQUASHES_FROM:
            return side, squashed(side, how)
        return side, cropped(round(side / float(values.get("crop_pct") or _CONVNEXT_SHARE)), side, how)
    if kind.startswith("Levit"):
        return side, cropped(round(256 / 224 * (side_of(size) or side)), side, how)
    if _is_box(size):
        whole = side_of(size) or side
        return side, squashed(whole, how) + ("" if whole == side else f", the middle {side} x {side} of it")
    return side, cropped(side_of(size) or side, side, how)


def _is_box(size: Any) -> bool:
    return isinstance(size, int) or (isinstance(size, Mapping) and "height" in size)


def side_of(size: Any) -> int | None:
    """Return the side of a square, in any notation that configurations use; None for anything else."""
    if isinstance(size, Mapping):
        if "shortest_edge" in size:
            return int(size["shortest_edge"])
        size = [size.get("height"), size.get("width")]
    if isinstance(size, (list, tuple)):
        size = size[0] if len(set(size)) == 1 else None
    return int(size) if size else None
