"""`torchvision:NAME`: the classifiers of torchvision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from kd3.models.libraries.common import Facts, check_name, cropped, fetching, library, made, refuse_class_count, side_of

NEEDS = "; it must be the build that belongs to your torch"


def build(
    name: str, num_classes: int, arch_args: Mapping[str, Any], *, input_size: int | None, folder: Path
) -> nn.Module:
    """Return a new network of torchvision; a vision transformer is built for `input_size`."""
    models = _models(name)
    sized = {"image_size": input_size} if input_size is not None and name.startswith("vit_") else {}
    arguments = {"name": name, "weights": None, "num_classes": num_classes, **arch_args}
    return made(f"torchvision:{name}", models.get_model, arguments, sized=sized)


def trained(name: str, arch_args: Mapping[str, Any], *, folder: Path) -> nn.Module:
    """Return the network with torchvision's newest weights for it."""
    models = _models(name)
    refuse_class_count(f"torchvision:{name}", arch_args, "num_classes")
    with fetching(f"torchvision:{name}"):
        network: nn.Module = models.get_model(name, **{"weights": "DEFAULT", **arch_args})
    return network


def facts(name: str, arch_args: Mapping[str, Any], *, folder: Path) -> Facts:
    """Return torchvision's facts about its newest weights: size, mean, std, the classes by name."""
    newest = _models(name).get_model_weights(name).DEFAULT
    transforms, classes = newest.transforms(), list(newest.meta["categories"])
    side, shorter = side_of(transforms.crop_size), side_of(transforms.resize_size)
    found = {
        "num_classes": len(classes),
        "classes": _distinct(classes),
        "mean": list(transforms.mean),
        "std": list(transforms.std),
        "input_size": side_of(arch_args.get("image_size")) or side,
    }
    preparation = cropped(shorter, side, transforms.interpolation.value) if shorter and side else ""
    return Facts({key: value for key, value in found.items() if value}, preparation)


def _models(name: str) -> Any:
    models = library("torchvision.models", extra="torchvision", needs=NEEDS)
    # Detection, segmentation and video have their own modules.
    check_name("torchvision", name, models.list_models(module=models))
    return models


def _distinct(names: list[str]) -> list[str]:
    """Number the names that ImageNet has twice: its two cranes, its two maillots."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found
