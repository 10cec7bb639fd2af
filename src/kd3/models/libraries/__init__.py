"""Sources of networks by name: `prefix:NAME`. A library of models is one file and one entry here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import nn

from kd3.models.libraries.common import Facts


class Source(Protocol):
    """Interface of a module of this package, or of an object in one."""

    def build(
        self, name: str, num_classes: int, arch_args: Mapping[str, Any], *, input_size: int | None, folder: Path
    ) -> nn.Module:
        """Return a new network. `input_size` is a hint for networks of a fixed size; `folder` is the base of relative
        paths.

        Raises:
            KD3Error: the library is missing, or has no such network.
        """

    def trained(self, name: str, arch_args: Mapping[str, Any], *, folder: Path) -> nn.Module:
        """Return the network with the source's weights, which may be downloaded.

        Raises:
            KD3Error: there are none, or they cannot be loaded.
        """

    def facts(self, name: str, arch_args: Mapping[str, Any], *, folder: Path) -> Facts:
        """Return the source's facts about its own trained network.

        Raises:
            KD3Error: the library is missing, or has no such network.
        """


@dataclass(frozen=True)
class Entry:
    """A source by its prefix."""

    module: str  # or an object in one: MODULE:NAME
    what: str  # NAME in messages
    is_trained: bool  # the name alone stands for a trained network, so that a teacher needs no description
    weights: Literal["none", "asked for", "its own"]
    # Meaning of a description without weights: an untrained network; an error that asks for 'pretrained', since users'
    # own checkpoints have the same architecture names; or the weights in the named file.
    starts_from: tuple[str, ...] = ()  # arguments that only select a student's initial weights
    renames: tuple[str, ...] = ()  # builder arguments that would override NAME

    def load(self) -> Source:
        """Import it."""
        module, _, name = self.module.partition(":")
        found: Any = import_module(module)
        source: Source = getattr(found, name) if name else found
        return source


SOURCES = {
    "kd3": Entry("kd3.models.libraries.zoo", "NAME", False, "none"),
    "timm": Entry(
        "kd3.models.libraries.timm",
        "NAME",
        True,
        "asked for",
        ("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"),
        ("model_name",),
    ),
    "torchvision": Entry(
        "kd3.models.libraries.torchvision", "NAME", True, "asked for", ("weights", "weights_backbone"), ("name",)
    ),
    "hf": Entry("kd3.models.libraries.transformers", "NAME_OR_FOLDER", True, "its own"),
    "torchscript": Entry("kd3.models.libraries.saved_networks:TORCHSCRIPT", "FILE", True, "its own"),
    "torch-export": Entry("kd3.models.libraries.saved_networks:TORCH_EXPORT", "FILE", True, "its own"),
}
