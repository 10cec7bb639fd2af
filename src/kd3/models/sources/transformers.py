"""`hf:NAME_OR_FOLDER`: image classifiers of transformers, from a folder or from the hub.

What the images must be like is read from the model's own `preprocessor_config.json`: the library's image processors
need torchvision, and fail without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from kd3.errors import KD3Error
from kd3.models.sources.library import fetching, library

PROCESSOR = "preprocessor_config.json"


def build(
    name: str, num_classes: int, arch_args: Mapping[str, Any], *, input_size: int | None, folder: Path
) -> nn.Module:
    """Return a new network of the kind that the folder's or hub model's configuration describes."""
    config = _config(name, folder)
    sized = {"image_size": input_size} if input_size is not None and hasattr(config, "image_size") else {}
    for key, value in {**sized, **arch_args}.items():
        if not hasattr(config, key):
            raise KD3Error(f"hf:{name} ({config.model_type}) has no setting {key!r}; take it out of arch_args")
        setattr(config, key, value)
    if config.num_labels != num_classes:
        config.num_labels = num_classes
    return _built(name, lambda auto: auto.from_config(config))


def trained(name: str, arch_args: Mapping[str, Any], *, folder: Path) -> nn.Module:
    """Return the network with the weights of the folder or the hub model."""
    _config(name, folder)  # what is wrong with the name is told by it
    with fetching(f"hf:{name}"):
        return _built(name, lambda auto: auto.from_pretrained(_place(name, folder), **arch_args))


def facts(name: str, arch_args: Mapping[str, Any], *, folder: Path) -> dict[str, Any]:
    """Return what the model's files say: classes, mean, std, size."""
    config = _config(name, folder)
    labels = [config.id2label[place] for place in sorted(config.id2label)]
    # Names that nobody gave: LABEL_0, LABEL_1, ...
    named = labels != [f"LABEL_{place}" for place in range(len(labels))] and len(set(labels)) == len(labels)
    found: dict[str, Any] = {"num_classes": len(labels), "classes": labels if named else None}
    found["input_size"] = arch_args.get("image_size") or _side(getattr(config, "image_size", None))
    processor = _processor(name, folder)
    if processor.get("do_normalize", True):
        found |= {"mean": processor.get("image_mean"), "std": processor.get("image_std")}
    else:
        found |= {"mean": [0.0] * 3, "std": [1.0] * 3}
    found["input_size"] = _side(processor.get("crop_size")) or _side(processor.get("size")) or found["input_size"]
    return {key: value for key, value in found.items() if value is not None}


def _processor(name: str, folder: Path) -> dict[str, Any]:
    place = Path(_place(name, folder))
    if place.is_dir():
        path = place / PROCESSOR
    else:
        hub = library("huggingface_hub", extra="hf")
        try:
            path = Path(hub.hf_hub_download(name, PROCESSOR))
        except Exception:  # the model has none: its description must say what it expects
            return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as problem:
        raise KD3Error(f"{path} cannot be read: {problem}") from None
    return found


def _side(size: Any) -> int | None:
    if isinstance(size, Mapping):
        size = size.get("height") or size.get("shortest_edge")
    if isinstance(size, (list, tuple)):
        size = size[0] if size else None
    return int(size) if size else None


def _place(name: str, folder: Path) -> str:
    local = (folder / Path(name).expanduser()).resolve()
    if local.is_dir():
        return str(local)
    if name.startswith((".", "/", "~")):
        raise KD3Error(f"hf:{name}: there is no folder {local}")
    return name


def _config(name: str, folder: Path) -> Any:
    place = _place(name, folder)
    transformers = library("transformers", extra="hf")
    if Path(place).is_dir() and not (Path(place) / "config.json").is_file():
        raise KD3Error(f"hf:{name}: {place} holds no config.json of transformers")
    with fetching(f"hf:{name}"):
        return transformers.AutoConfig.from_pretrained(place)


def _built(name: str, make: Any) -> nn.Module:
    transformers = library("transformers", extra="hf")
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        network: nn.Module = make(transformers.AutoModelForImageClassification)
    except ValueError as problem:
        if "Unrecognized configuration class" in str(problem):
            raise KD3Error(f"hf:{name} is no image classifier of transformers") from None
        raise KD3Error(f"hf:{name} cannot be built: {str(problem).splitlines()[0]}") from problem
    finally:
        transformers.logging.set_verbosity(level)
    return network
