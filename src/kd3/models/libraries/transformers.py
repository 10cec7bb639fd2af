"""`hf:NAME_OR_FOLDER`: image classifiers of transformers, from a folder or from the hub.

A name is looked up in the library's cache first, then on the network. A repository's own code is never run, and missing
weights are never initialised randomly.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from kd3.models.libraries import timm
from kd3.models.libraries.common import Facts, facts_of_processor, hidden_if_broken, library, side_of
from kd3.runtime.console import info
from kd3.runtime.errors import KD3Error, in_brief, in_words
from kd3.runtime.text import first_of

PROCESSOR = "preprocessor_config.json"
SHOWN = 3  # names in a message


def build(
    name: str, num_classes: int, arch_args: Mapping[str, Any], *, input_size: int | None, folder: Path
) -> nn.Module:
    """Return a new network of the kind that the folder's or hub model's configuration describes."""
    if is_of_timm(name, folder):
        return timm.build(name, num_classes, arch_args, input_size=input_size, folder=folder)
    config = _config(name, folder, arch_args)
    if input_size is not None and "image_size" not in arch_args:
        # Vision-language models have a vision part.
        seeing = config if hasattr(config, "image_size") else getattr(config, "vision_config", config)
        if hasattr(seeing, "image_size"):
            seeing.image_size = input_size
    if config.num_labels != num_classes:
        config.num_labels = num_classes
    if getattr(config, "architectures", None) is None:
        config.architectures = []  # selects among several classes; without it the library takes the first
    with _explaining(name, "cannot be built"), _quiet():
        network: nn.Module = transformers_library().AutoModelForImageClassification.from_config(config)
    return network


def trained(name: str, arch_args: Mapping[str, Any], *, folder: Path) -> nn.Module:
    """Return the network with the weights of the folder or the hub model.

    Raises:
        KD3Error: they cannot be loaded, or are incomplete.
    """
    if is_of_timm(name, folder):
        return timm.trained(name, arch_args, folder=folder)
    config, place = _config(name, folder, arch_args), _place(name, folder)
    if getattr(config, "problem_type", None) == "multi_label_classification":
        raise KD3Error(
            f"hf:{name} gives an image several labels (problem_type: multi_label_classification); kd3 distils classes "
            f"that exclude each other"
        )
    if getattr(config, "architectures", None) is None:
        config.architectures = []

    def load(local_files_only: bool) -> Any:
        return transformers_library().AutoModelForImageClassification.from_pretrained(
            place,
            config=config,
            output_loading_info=True,
            trust_remote_code=False,
            local_files_only=local_files_only,
        )

    with _explaining(name, f"cannot be loaded from {place}"), _quiet():
        network, report = _from_cache_or_hub(name, place, load)
    # The library would initialise these randomly.
    missing = sorted(map(str, report["missing_keys"]))
    if missing:
        raise KD3Error(
            f"hf:{name} has no weights for {len(missing)} of its tensors ({first_of(missing, SHOWN)}): it is "
            f"not a trained {type(network).__name__}"
        )
    trained_network: nn.Module = network
    return trained_network


def facts(name: str, arch_args: Mapping[str, Any], *, folder: Path) -> Facts:
    """Return the facts in the model's files: classes, mean, std, size, colours, and picture preparation."""
    if is_of_timm(name, folder):
        return timm.facts(name, arch_args, folder=folder)
    config = _config(name, folder, arch_args)
    labels = [config.id2label[place] for place in sorted(config.id2label)]
    # Names that nobody gave: LABEL_0, LABEL_1, ...
    named = labels != [f"LABEL_{place}" for place in range(len(labels))] and len(set(labels)) == len(labels)
    found: dict[str, Any] = {"num_classes": len(labels), "classes": labels if named else None}
    seeing = getattr(config, "vision_config", config)
    found["input_size"] = side_of(getattr(config, "image_size", None)) or side_of(getattr(seeing, "image_size", None))
    wrapped = getattr(config, "pretrained_cfg", None)  # of timm, inside transformers
    if isinstance(wrapped, Mapping):
        found |= {"mean": wrapped.get("mean"), "std": wrapped.get("std")}
        found["input_size"] = (wrapped.get("input_size") or [None])[-1] or found["input_size"]
    processor = facts_of_processor(given) if (given := _processor(name, folder)) else Facts()
    found |= processor.settings
    if "image_size" in arch_args:
        found["input_size"] = side_of(arch_args["image_size"])
    return Facts({key: value for key, value in found.items() if value is not None}, processor.preparation)


def is_of_timm(name: str, folder: Path) -> bool:
    """Return whether timm's save_for_hf wrote a folder: it names an architecture and no model type."""
    try:
        config = json.loads((Path(_place(name, folder)) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "architecture" in config and "model_type" not in config


def _config(name: str, folder: Path, arch_args: Mapping[str, Any]) -> Any:
    """Return the model's configuration, changed by the arguments."""
    place = _place(name, folder)
    auto = transformers_library().AutoConfig
    if Path(place).is_dir() and not (Path(place) / "config.json").is_file():
        raise KD3Error(f"hf:{name}: {place} holds no config.json of transformers")

    def load(local_files_only: bool) -> Any:
        return auto.from_pretrained(place, trust_remote_code=False, local_files_only=local_files_only)

    with _explaining(name, f"cannot be read from {place}"), _quiet():
        config = _from_cache_or_hub(name, place, load)
    _refuse_kernels(name, config)
    for key, value in arch_args.items():
        if key in ("num_labels", "id2label", "label2id"):
            raise KD3Error(f"hf:{name}: num_classes is a setting of its own; take {key!r} out of arch_args")
        if not hasattr(config, key):
            raise KD3Error(f"hf:{name} ({config.model_type}) has no setting {key!r}; take it out of arch_args")
        with _explaining(name, f"cannot take {key}: {value!r}"):
            setattr(config, key, value)
    return config


def _refuse_kernels(name: str, config: Any) -> None:
    """Refuse attention kernels that the library would download from the hub and run."""
    parts = [config, *(getattr(config, part, None) for part in getattr(config, "sub_configs", {}))]
    for part in parts:
        wanted = getattr(part, "_attn_implementation", None)
        if isinstance(wanted, str) and "/" in wanted:
            raise KD3Error(f"hf:{name} asks for code from the hub, which kd3 does not run: attention {wanted[:80]!r}")


def _processor(name: str, folder: Path) -> dict[str, Any]:
    place = Path(_place(name, folder))
    path: Path | None = place / PROCESSOR
    if not place.is_dir():
        path = _downloaded_processor(name)
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as problem:
        raise KD3Error(f"{path} cannot be read: {problem}") from None
    if not isinstance(found, dict):
        raise KD3Error(f"{path} does not describe an image processor: {type(found).__name__}")
    # A vision-language model may keep both processors in one file.
    inner = found.get("image_processor")
    return inner if isinstance(inner, dict) else found


def _downloaded_processor(name: str) -> Path | None:
    """Return the file of a hub model; None if it has none or the hub is unreachable; then the user must give the
    settings.
    """
    hub = library("huggingface_hub", extra="hf")
    for local_files_only in (True, False):
        try:
            return Path(hub.hf_hub_download(name, PROCESSOR, local_files_only=local_files_only))
        except Exception:
            continue
    return None


def _place(name: str, folder: Path) -> str:
    local = (folder / Path(name).expanduser()).resolve()
    if local.is_dir():
        return str(local)
    if local.is_file():
        raise KD3Error(f"hf:{name}: {local} is a file; name the folder that holds it and its config.json")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise KD3Error(f"hf:{name}: there is no folder {local}")
    return name


def _from_cache_or_hub(name: str, place: str, load: Callable[[bool], Any]) -> Any:
    if Path(place).is_dir():
        return load(True)
    try:
        return load(True)
    except OSError:  # the cache is incomplete
        info(f"asking the Hugging Face hub for {name}")
    try:
        return load(False)
    except OSError as problem:
        raise KD3Error(
            f"hf:{name} is no folder here, not in the library's cache, and cannot be had from the hub: "
            f"{in_words(problem).strip().splitlines()[0]}"
        ) from problem


@contextmanager
def _explaining(name: str, what: str) -> Iterator[None]:
    """Convert the library's errors to KD3Error."""
    try:
        yield
    except KD3Error:
        raise
    except Exception as problem:  # from JSON to safetensors and torch: each has its own errors
        message = str(problem)
        if "trust_remote_code" in message:
            raise KD3Error(
                f"hf:{name} needs code of its own, which kd3 does not run; name a function of yours that builds it "
                f"(path/to/net.py:build), or save it with torch.export"
            ) from None
        if "Unrecognized configuration class" in message:
            raise KD3Error(f"hf:{name} is no image classifier of transformers") from None
        if "ignore_mismatched_sizes" in message:
            raise KD3Error(f"hf:{name} {what}: the weights have other shapes than the configuration") from None
        raise KD3Error(f"hf:{name} {what}: {in_brief(problem)}") from problem


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library: its warnings are irrelevant or reported in our words."""
    logging = transformers_library().logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@cache
def transformers_library() -> Any:
    """Return the library. It checks once for torchvision, and takes a broken one for usable."""
    with hidden_if_broken("torchvision"):
        found = library("transformers", extra="hf")
        asked = getattr(found.utils.import_utils, "is_torchvision_available", None)
        if asked is not None:
            if hasattr(asked, "cache_clear"):
                asked.cache_clear()
            asked()
    return found
