"""`torchscript:FILE` and `torch-export:FILE`: finished networks, saved by `torch.jit.save` or `torch.export.save`.

Loading one may run code: TorchScript is code, and an exported program holds pickles.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from kd3.models.calling import call_as, calling_of
from kd3.models.libraries.common import Facts
from kd3.runtime.errors import KD3Error, in_brief

CHECKPOINT = "checkpoint"
SPOKEN = {CHECKPOINT: "a checkpoint", "torchscript": "TorchScript", "torch-export": "an exported program"}


@dataclass(frozen=True)
class SavedNetworks:
    """A `kd3.models.libraries.Source` whose names are files with a whole network."""

    kind: str
    load: Callable[[str], nn.Module]

    def build(
        self, name: str, num_classes: int, arch_args: Mapping[str, Any], *, input_size: int | None, folder: Path
    ) -> nn.Module:
        """Refuse: it cannot be trained again."""
        raise KD3Error(f"{self.kind}:{name} is a finished network and cannot be a student; it can be a teacher")

    def trained(self, name: str, arch_args: Mapping[str, Any], *, folder: Path) -> nn.Module:
        """Return the network, on the CPU.

        Raises:
            KD3Error: there is no such file, or it is of another kind.
        """
        kind, path = self.kind, _path(name, folder)
        if arch_args:
            raise KD3Error(f"{kind}:{name} takes no arch_args: the file holds a finished network")
        if not path.is_file():
            raise KD3Error(f"{kind}:{name}: there is no file {path}")
        found = _what_it_is(path)
        if found is not None and found != kind:
            checkpoint = "name it under weights, with the arch of its network"
            hint = checkpoint if found == CHECKPOINT else f"write {found}:{name}"
            raise KD3Error(f"{path} cannot be read as {kind}: it is {SPOKEN[found]}; {hint}")
        try:
            return self.load(str(path))
        except Exception as problem:  # from zip, pickle or torch's own readers
            raise KD3Error(f"{path} cannot be read as {kind}: {in_brief(problem)}") from problem

    def facts(self, name: str, arch_args: Mapping[str, Any], *, folder: Path) -> Facts:
        """Return nothing: the file does not describe its input."""
        return Facts()


def _what_it_is(path: Path) -> str | None:
    """Return the kind of a file by its archive's contents; None for unknown kinds."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] or name for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError):
        return None
    if names & {"archive_format", "serialized_exported_program.json"}:
        return "torch-export"
    if "constants.pkl" in names:
        return "torchscript"
    return CHECKPOINT if "data.pkl" in names else None


def file_hash(name: str, folder: Path) -> str:
    """Return the SHA-256 of a network's file, in hex."""
    digest = hashlib.sha256()
    with _path(name, folder).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _path(name: str, folder: Path) -> Path:
    return (folder / Path(name).expanduser()).resolve()


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


def _read_torchscript(path: str) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript as a whole
        network: nn.Module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    return network


def _read_exported(path: str) -> nn.Module:
    log = logging.getLogger("torch.export")
    level = log.level
    log.setLevel(logging.CRITICAL)  # suppress a traceback; ours is one sentence
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Exported(torch.export.load(path))
    finally:
        log.setLevel(level)


TORCHSCRIPT = SavedNetworks("torchscript", _read_torchscript)
TORCH_EXPORT = SavedNetworks("torch-export", _read_exported)
