"""Common part of the model libraries: facts about trained networks, missing packages, image preparation.

Image preparation of a transformers model, read from its `preprocessor_config.json`. The library's own image processors
need torchvision or one framework; this reads their settings from the file.
"""

from __future__ import annotations

import difflib
import importlib.util
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from torch import nn

from kd3.runtime.errors import KD3Error, in_brief

RESAMPLING = {0: "nearest", 1: "Lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "Hamming"}  # Pillow's numbers


@dataclass(frozen=True)
class Facts:
    """Settings of a teacher's description, as far as known, and the preparation of its images.

    `settings` may hold num_classes, classes, mean, std, input_size and colours.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    preparation: str = ""  # in words: from a picture to the training square


def squashed(side: int, how: str) -> str:
    """Describe a picture squashed into a square."""
    return f"the whole picture squashed to {side} x {side}{f', {how}' if how else ''} (kd3 ingest --fit squash)"


def cropped(shorter: int, side: int, how: str) -> str:
    """Describe a centre crop."""
    resampled = f", {how}" if how else ""
    if shorter == side:
        return f"the shorter side to {side}, the middle {side} x {side}{resampled} (kd3 ingest --fit crop)"
    return (
        f"the shorter side to {shorter}{resampled}, the middle {side} x {side} of it (kd3 ingest --fit crop keeps "
        f"{100 * (shorter / side - 1):.0f}% more of each side)"
    )


NEAREST = 3  # names in a message


def library(name: str, *, extra: str, needs: str = "") -> Any:
    """Import a library late.

    Raises:
        KD3Error: it is not installed, or cannot be imported; the sentence gives the remedy.
    """
    try:
        return import_module(name)
    except ImportError as problem:
        if problem.name is not None and name.startswith(problem.name):
            raise KD3Error(f"{name} is not installed: pip install 'kd3[{extra}]'{needs}") from None
        raise _broken(name, problem, needs) from problem
    except Exception as problem:
        # A torchvision built for another torch raises RuntimeError for a missing operator.
        raise _broken(name, problem, needs) from problem


def _broken(name: str, problem: Exception, needs: str) -> KD3Error:
    return KD3Error(f"{name} is installed but cannot be imported ({in_brief(problem)}){needs}")


@contextmanager
def hidden_if_broken(name: str) -> Iterator[None]:
    """Hide an installed but broken library from others that probe for it."""
    if name in sys.modules or importlib.util.find_spec(name) is None:
        yield
        return
    try:
        import_module(name)
    except Exception:
        for half_imported in [other for other in sys.modules if other.partition(".")[0] == name]:
            del sys.modules[half_imported]
        sys.modules[name] = None  # type: ignore[assignment]  # as Python itself marks what is not to be found
        try:
            yield
        finally:
            del sys.modules[name]
        return
    yield


def check_name(prefix: str, name: str, known: Collection[str]) -> None:
    """Refuse a name that a library does not have, and name similar ones.

    Raises:
        KD3Error: the name is unknown.
    """
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=NEAREST, cutoff=0.5)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    raise KD3Error(f"{prefix} has no network {name!r}{hint}")


def made(
    arch: str, build: Callable[..., nn.Module], arguments: Mapping[str, Any], *, sized: Mapping[str, Any]
) -> nn.Module:
    """Call a library's builder, with the input size if it takes one.

    `sized` is dropped if the network accepts any size and has no such argument.

    Raises:
        KD3Error: the library refuses the arguments; in its own words.
    """
    hints = {key: value for key, value in sized.items() if key not in arguments}
    attempts = [{**arguments, **hints}, dict(arguments)] if hints else [dict(arguments)]
    for attempt in attempts:
        try:
            return build(**attempt)
        except Exception as problem:
            failure = problem
            if attempt is attempts[0] and hints and any(key in str(problem) for key in hints):
                continue
            break
    raise KD3Error(f"{arch} cannot be built: {in_brief(failure)}") from failure


def refuse_class_count(arch: str, arch_args: Mapping[str, Any], argument: str) -> None:
    """Refuse another number of classes than a trained network has: its library would add an untrained classifier.

    Raises:
        KD3Error: the arguments hold one.
    """
    if argument in arch_args:
        raise KD3Error(f"{arch}: trained weights have the classes that they have; take {argument!r} out of arch_args")


@contextmanager
def fetching(arch: str) -> Iterator[None]:
    """Convert errors while fetching weights to a sentence."""
    try:
        yield
    except KD3Error:
        raise
    except Exception as problem:  # requests, urllib, huggingface_hub: each has its own errors
        raise KD3Error(
            f"the weights of {arch} cannot be had: {in_brief(problem)}; without a network, "
            f"bring the file and name it under weights"
        ) from problem


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
        given_mean, given_std = _three(values.get("image_mean")), _three(values.get("image_std"))
        if given_std is None or given_mean is None:
            return {}  # the user has to give them
        if values.get("do_normalize", True):
            mean, std = given_mean, given_std
        if twice:
            std = [first * second for first, second in zip(std, given_std, strict=True)]
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
