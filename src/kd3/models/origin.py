"""Origin of a teacher's network, in a form from which a student of the same architecture can be built anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd3.models.arch import parse_arch
from kd3.models.sources import timm, transformers


@dataclass(frozen=True)
class Origin:
    """An architecture as a description names it."""

    arch: str
    arch_args: Mapping[str, Any]
    folder: Path  # that its relative paths start from

    def anywhere(self) -> tuple[str, dict[str, Any]]:
        """Return architecture and arguments that do not depend on the folder."""
        reference = parse_arch(self.arch)
        if reference.source == "file":
            path = (self.folder / Path(reference.target).expanduser()).resolve()
            return f"{path}:{reference.function}", dict(self.arch_args)
        by_timm = reference.source == "hf" and transformers.is_of_timm(reference.target, self.folder)
        saved = timm.saved_folder(reference.target, self.folder) if by_timm or reference.source == "timm" else None
        if saved is not None:
            return f"timm:{saved.architecture}", {**saved.model_args, **self.arch_args}
        return self.arch, dict(self.arch_args)
