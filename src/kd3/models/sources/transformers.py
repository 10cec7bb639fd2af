"""`hf:NAME_OR_FOLDER`: image classifiers of transformers, from a folder or from the hub.

What the images must be like is read from the model's own `preprocessor_config.json`: the library's image processors
need torchvision, and fail without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kd3.errors import KD3Error
from kd3.models.sources.beside_torchvision import transformers as imported
from kd3.models.sources.library import fetching, library
from kd3.models.sources.preprocessor import normalisation, side, takes_bgr

PROCESSOR = "preprocessor_config.json"
NO_CODE = {"trust_remote_code": False}  # else transformers asks on the terminal


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
    """Return the network with the weights of the folder or the hub model; one that takes BGR is turned to RGB."""
    _config(name, folder)  # what is wrong with the name is told by it
    missing: set[str] = set()

    def make(auto: Any) -> nn.Module:
        found, info = auto.from_pretrained(_place(name, folder), output_loading_info=True, **NO_CODE, **arch_args)
        missing.update(str(key) for key in info["missing_keys"])
        missing.update(str(key[0] if isinstance(key, tuple) else key) for key in info.get("mismatched_keys", ()))
        network: nn.Module = found
        return network

    with fetching(f"hf:{name}"):
        network = _built(name, make)
    # transformers would draw them at random, and only warn.
    drawn = sorted(missing & {key for key, _ in network.named_parameters()})
    if drawn:
        shown = ", ".join(drawn[:3]) + (", ..." if len(drawn) > 3 else "")
        raise KD3Error(
            f"hf:{name} holds no trained classifier of this kind: {shown} are not in its files, or of another shape"
        )
    return _rgb_first(name, network) if takes_bgr(_processor(name, folder)) else network


def _rgb_first(name: str, network: nn.Module) -> nn.Module:
    """Swap the inputs of the first convolution, so that the network takes RGB."""
    first = [module for module in network.modules() if isinstance(module, nn.Conv2d) and module.in_channels == 3]
    if len(first) != 1 or first[0].groups != 1:
        raise KD3Error(f"hf:{name} takes images as blue, green, red, and its first layer cannot be turned to RGB")
    with torch.no_grad():
        first[0].weight.copy_(first[0].weight.flip(1))
    return network


def facts(name: str, arch_args: Mapping[str, Any], *, folder: Path) -> dict[str, Any]:
    """Return what the model's files say: classes, mean, std, size."""
    config = _config(name, folder)
    labels = [config.id2label[place] for place in sorted(config.id2label)]
    # Names that nobody gave: LABEL_0, LABEL_1, ...
    named = labels != [f"LABEL_{place}" for place in range(len(labels))] and len(set(labels)) == len(labels)
    found: dict[str, Any] = {"num_classes": len(labels), "classes": labels if named else None}
    found["input_size"] = arch_args.get("image_size") or side(getattr(config, "image_size", None))
    processor = _processor(name, folder)
    found |= normalisation(processor)
    found["input_size"] = side(processor.get("crop_size")) or side(processor.get("size")) or found["input_size"]
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


def _place(name: str, folder: Path) -> str:
    local = (folder / Path(name).expanduser()).resolve()
    if local.is_dir():
        return str(local)
    if name.startswith((".", "/", "~")):
        raise KD3Error(f"hf:{name}: there is no folder {local}")
    return name


def _config(name: str, folder: Path) -> Any:
    place = _place(name, folder)
    transformers = imported()
    if Path(place).is_dir() and not (Path(place) / "config.json").is_file():
        raise KD3Error(f"hf:{name}: {place} holds no config.json of transformers")
    with fetching(f"hf:{name}"):
        try:
            return transformers.AutoConfig.from_pretrained(place, **NO_CODE)
        except ValueError as problem:
            if "trust_remote_code" in str(problem):
                raise KD3Error(
                    f"hf:{name} needs code of its own, which kd3 does not run; load it yourself and give it as "
                    f"kd3.Teacher(module, ...), or by path/to/net.py:build"
                ) from None
            raise


def _built(name: str, make: Any) -> nn.Module:
    transformers = imported()
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        network: nn.Module = make(transformers.AutoModelForImageClassification)
    except (ImportError, RuntimeError) as problem:
        if not isinstance(problem, ImportError) and "import" not in str(problem):
            raise
        raise KD3Error(
            f"hf:{name}: transformers cannot import this kind of network ({str(problem).splitlines()[0][:120]}); a "
            f"torchvision beside it must be the build that belongs to your torch: install that, or uninstall it"
        ) from problem
    except ValueError as problem:
        if "Unrecognized configuration class" in str(problem):
            raise KD3Error(f"hf:{name} is no image classifier of transformers") from None
        raise KD3Error(f"hf:{name} cannot be built: {str(problem).splitlines()[0]}") from problem
    finally:
        transformers.logging.set_verbosity(level)
    return network
