"""`torch-export:FILE`: a network saved by `torch.export.save`. Loading one may run code: it holds pickles."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from kd3.models.calling import call_as, calling_of
from kd3.models.libraries.common import Facts, no_student, read


def build(
    name: str, num_classes: int, arch_args: Mapping[str, Any], *, input_size: int | None, folder: Path
) -> nn.Module:
    """Refuse: it cannot be trained again."""
    raise no_student("torch-export", name)


def trained(name: str, arch_args: Mapping[str, Any], *, folder: Path) -> nn.Module:
    """Return the network."""
    return read("torch-export", name, arch_args, folder, _load)


def facts(name: str, arch_args: Mapping[str, Any], *, folder: Path) -> Facts:
    """Return nothing: the file does not describe its input."""
    return Facts()


class Exported(nn.Module):
    """An exported program as a module that accepts `eval()`; it is always in evaluation mode."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        super().__init__()
        self._program = program
        self.network = program.module()
        inputs = program.example_inputs[0] if program.example_inputs else ()
        self._batch = len(inputs[0]) if inputs and isinstance(inputs[0], Tensor) else None

    def forward(self, images: Tensor) -> Any:
        """Run the program."""
        try:
            return self.network(images)
        except (AssertionError, RuntimeError) as problem:
            if len(images) == 1 and self._batch != 1:
                # Batches of one are excluded if the batch size is dynamic: torch.export.Dim begins at 2.
                return tree_map(lambda output: output[:1], self.network(images.repeat(2, 1, 1, 1)))
            if self._batch is None or len(images) == self._batch:
                raise
            raise RuntimeError(
                f"it was exported for batches of {self._batch}, and got {len(images)}; export it with an open number "
                f"of images (dynamic_shapes={{...: {{0: torch.export.Dim('batch')}}}})"
            ) from problem

    def __deepcopy__(self, memo: dict[int, Any]) -> Exported:
        # A copy of an exported graph triggers deprecation warnings of torch itself.
        other = Exported(self._program)
        call_as(other, calling_of(self))
        return other

    def train(self, mode: bool = True) -> Exported:
        """Stay as it is; the program itself would refuse."""
        return self


def _load(path: str) -> nn.Module:
    log = logging.getLogger("torch.export")
    level = log.level
    log.setLevel(logging.CRITICAL)  # suppress a traceback; ours is one sentence
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Exported(torch.export.load(path))
    finally:
        log.setLevel(level)
