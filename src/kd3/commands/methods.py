"""`kd3 methods`: the list of methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kd3.config.commands import MethodsConfig
from kd3.config.methods import METHODS


@dataclass(frozen=True)
class Methods:
    """The methods, with one line each."""

    def to_dict(self) -> dict[str, Any]:
        """Return name -> summary, source and options with their defaults."""
        return {
            name: {"summary": entry.summary, "source": entry.source, "options": entry.options().model_dump(mode="json")}
            for name, entry in METHODS.items()
        }

    def __str__(self) -> str:
        width = max(map(len, METHODS))
        return "\n".join(f"{name:<{width}}  {entry.summary} ({entry.source})" for name, entry in METHODS.items())


def run(config: MethodsConfig) -> Methods:
    """Run the command line's settings."""
    return Methods()
