"""`timm:NAME_OR_FOLDER`: the networks of timm (pytorch-image-models), and folders that its `save_for_hf` wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import nn

from kd3.models.checkpoint import load_weights
from kd3.models.libraries.common import (
    Facts,
    check_name,
    cropped,
    fetching,
    library,
    made,
    refuse_class_count,
    side_of,
    squashed,
)
from kd3.runtime.errors import KD3Error

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in a folder
NEEDS = "; timm imports torchvision, in the build that belongs to your torch"


def build(
    name: str, num_classes: int, arch_args: Mapping[str, Any], *, input_size: int | None, folder: Path
) -> nn.Module:
    """Return a new network of timm; one that is built for a size is built for `input_size`."""
    if saved := saved_folder(name, folder):
        name, arch_args = saved.architecture, {**saved.model_args, **arch_args}
    timm = _timm(name)
    sized = {} if input_size is None or _native(timm, name) == input_size else {"img_size": input_size}
    arguments = {"model_name": name, "num_classes": num_classes, "pretrained": False, **arch_args}
    return made(f"timm:{name}", timm.create_model, arguments, sized=sized)


def trained(name: str, arch_args: Mapping[str, Any], *, folder: Path) -> nn.Module:
    """Return the network with timm's own weights, or with those in the folder."""
    if saved := saved_folder(name, folder):
        refuse_class_count(f"timm:{name}", arch_args, "num_classes")
        network = build(name, saved.num_classes, arch_args, input_size=None, folder=folder)
        found = [saved.place / file for file in WEIGHTS if (saved.place / file).is_file()]
        if not found:
            raise KD3Error(f"timm:{name}: {saved.place} holds no weights ({' or '.join(WEIGHTS)})")
        load_weights(network, found[0], where=f"timm:{name}")
        return network
    timm = _timm(name)
    known = timm.get_pretrained_cfg(name)
    if not timm.is_model_pretrained(name) or known is None:
        raise KD3Error(f"timm has no weights for {name}; name a file of them under weights")
    if known.num_classes == 0:
        raise KD3Error(f"timm's weights of {name} are of features without a classifier, which cannot teach classes")
    refuse_class_count(f"timm:{name}", arch_args, "num_classes")
    with fetching(f"timm:{name}"):
        trained_network: nn.Module = timm.create_model(name, **{**arch_args, "pretrained": True})
    return trained_network


def facts(name: str, arch_args: Mapping[str, Any], *, folder: Path) -> Facts:
    """Return timm's facts about its weights: size, mean, std, the number of classes, picture preparation."""
    saved = saved_folder(name, folder)
    known = saved or _timm(name).get_pretrained_cfg(name)
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


def saved_folder(name: str, folder: Path) -> SimpleNamespace | None:
    """Return timm's record of a network saved in a folder; None if the name is no such folder.

    Raises:
        KD3Error: the folder exists, but describes no timm network.
    """
    place = (folder / Path(name).expanduser()).resolve()
    if not place.is_dir():
        return None
    try:
        config = json.loads((place / CONFIG).read_text(encoding="utf-8"))
        architecture, known = config["architecture"], config.get("pretrained_cfg") or {}
        classes = config.get("num_classes", known.get("num_classes"))
        labels = config.get("label_names") or known.get("label_names")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise KD3Error(
            f"timm:{name}: {place} holds no {CONFIG} of timm's save_for_hf ({type(problem).__name__}: {problem})"
        ) from None
    settings = ("mean", "std", "input_size", "crop_pct", "crop_mode", "interpolation")
    return SimpleNamespace(
        place=place,
        architecture=architecture,
        model_args=config.get("model_args") or {},
        num_classes=classes,
        label_names=labels,
        **{setting: known.get(setting) for setting in settings},
    )


def _timm(name: str) -> Any:
    timm = library("timm", extra="timm", needs=NEEDS)
    if not timm.is_model(name):
        check_name("timm", name, timm.list_models() + timm.list_models(pretrained=True))
    return timm


def _native(timm: Any, name: str) -> int | None:
    known = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return known.input_size[-1] if known is not None and known.input_size else None
