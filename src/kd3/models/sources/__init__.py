"""Sources of networks by name: `prefix:NAME`. A library of models is one file and one entry here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import nn

from kd3.models.sources.facts import Facts


class Source(Protocol):
    """Interface of a module of this package."""

    def build(
        self, name: str, num_classes: int, arch_args: Mapping[str, Any], *, input_size: int | None, folder: Path
    ) -> nn.Module:
        """Return a new network. `input_size` is a hint for those that are built for one; `folder` holds relative paths.

        Raises:
            KD3Error: the library is missing, or has no such network.
        """

    def trained(self, name: str, arch_args: Mapping[str, Any], *, folder: Path) -> nn.Module:
        """Return the network with the weights that the source has for it; may go to the network for them.

        Raises:
            KD3Error: there are none, or they cannot be had.
        """

    def facts(self, name: str, arch_args: Mapping[str, Any], *, folder: Path) -> Facts:
        """Return the source's facts about its own trained network.

        Raises:
            KD3Error: the library is missing, or has no such network.
        """


@dataclass(frozen=True)
class Entry:
    """A source by its prefix."""

    module: str
    what: str  # stands for NAME in messages
    is_trained: bool  # the name alone stands for a trained network, so that a teacher needs no description
    weights: Literal["none", "asked for", "its own"]
    # What a description means that names no weights: a network without any; nothing until it asks for the library's by
    # 'pretrained', since the name of an architecture is also that of users' own checkpoints; or what the name holds.
    starts_from: tuple[str, ...] = ()  # arguments that only say from which weights a student starts, or where they are
    renames: tuple[str, ...] = ()  # arguments of the library's builder that would name another network than NAME

    def load(self) -> Source:
        """Import it."""
        return import_module(self.module)


SOURCES = {
    "kd3": Entry("kd3.models.sources.zoo", "NAME", False, "none"),
    "timm": Entry(
        "kd3.models.sources.timm",
        "NAME",
        True,
        "asked for",
        ("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"),
        ("model_name",),
    ),
    "torchvision": Entry(
        "kd3.models.sources.torchvision", "NAME", True, "asked for", ("weights", "weights_backbone"), ("name",)
    ),
    "hf": Entry("kd3.models.sources.transformers", "NAME_OR_FOLDER", True, "its own"),
    "torchscript": Entry("kd3.models.sources.torchscript", "FILE", True, "its own"),
    "torch-export": Entry("kd3.models.sources.torch_export", "FILE", True, "its own"),
}
