"""`timm:NAME`: the networks of timm (pytorch-image-models)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from kd3.errors import KD3Error
from kd3.models.sources.facts import Facts, cropped, squashed
from kd3.models.sources.image_processor import side_of
from kd3.models.sources.library import check_name, fetching, library, made, refuse_class_count

NEEDS = "; timm imports torchvision, in the build that belongs to your torch"


def build(
    name: str, num_classes: int, arch_args: Mapping[str, Any], *, input_size: int | None, folder: Path
) -> nn.Module:
    """Return a new network of timm; one that is built for a size is built for `input_size`."""
    timm = _timm(name)
    sized = {} if input_size is None or _native(timm, name) == input_size else {"img_size": input_size}
    arguments = {"model_name": name, "num_classes": num_classes, "pretrained": False, **arch_args}
    return made(f"timm:{name}", timm.create_model, arguments, sized=sized)


def trained(name: str, arch_args: Mapping[str, Any], *, folder: Path) -> nn.Module:
    """Return the network with timm's own weights."""
    timm = _timm(name)
    known = timm.get_pretrained_cfg(name)
    if not timm.is_model_pretrained(name) or known is None:
        raise KD3Error(f"timm has no weights for {name}; name a file of them under weights")
    if known.num_classes == 0:
        raise KD3Error(f"timm's weights of {name} are of features without a classifier, which cannot teach classes")
    refuse_class_count(f"timm:{name}", arch_args, "num_classes")
    with fetching(f"timm:{name}"):
        network: nn.Module = timm.create_model(name, **{**arch_args, "pretrained": True})
    return network


def facts(name: str, arch_args: Mapping[str, Any], *, folder: Path) -> Facts:
    """Return what timm says of its weights: size, mean, std, the number of classes, how pictures become squares."""
    known = _timm(name).get_pretrained_cfg(name)
    if known is None:
        return Facts()
    found = {"num_classes": known.num_classes, "mean": list(known.mean or ()), "std": list(known.std or ())}
    found["input_size"] = side_of(arch_args.get("img_size")) or (known.input_size or (None,))[-1]
    if known.label_names:
        found["classes"] = list(known.label_names)
    side = found["input_size"]
    preparation = ""
    if side and known.crop_mode == "squash":
        preparation = squashed(side, known.interpolation or "")
    elif side and known.crop_pct:
        preparation = cropped(int(side / known.crop_pct), side, known.interpolation or "")
    return Facts({key: value for key, value in found.items() if value}, preparation)


def _timm(name: str) -> Any:
    timm = library("timm", extra="timm", needs=NEEDS)
    if not timm.is_model(name):
        check_name("timm", name, timm.list_models() + timm.list_models(pretrained=True))
    return timm


def _native(timm: Any, name: str) -> int | None:
    known = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return known.input_size[-1] if known is not None and known.input_size else None
