"""`kd3 completion`: a script that makes a shell complete commands, flags, choices and files."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from kd3.config.command_table import COMMANDS
from kd3.config.commands import CompletionConfig
from kd3.config.datasets import DATASETS
from kd3.config.distill_layers import presets
from kd3.config.methods import METHODS
from kd3.config.parser import build_parser

# Settings that are files or folders; for others a shell would offer wrong values.
PATHS = {"teacher", "pool", "out", "data", "eval_data", "config", "images", "model", "run", "sources", "original"}
PATHS |= {"files", "teachers", "crawl", "reference", "student", "study", "known", "other"}


@dataclass(frozen=True)
class Script:
    """A script for a shell."""

    text: str

    def to_dict(self) -> dict[str, Any]:
        """Return it."""
        return {"script": self.text}

    def __str__(self) -> str:
        return self.text


def run(config: CompletionConfig) -> Script:
    """Run the command line's settings."""
    import shtab

    parser = build_parser()
    for name, command in _commands(parser):
        fields = COMMANDS[name].settings.model_fields
        for action in command._actions:
            if action.dest in PATHS:
                action.complete = shtab.FILE  # type: ignore[attr-defined]  # where shtab looks
            elif action.choices is None:
                action.choices = _choices(action, fields.get(action.dest))
    return Script(shtab.complete(parser, shell=config.shell))


def _commands(parser: argparse.ArgumentParser) -> list[tuple[str, argparse.ArgumentParser]]:
    return [
        (name, command)
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for name, command in action.choices.items()
    ]


def _choices(action: argparse.Action, field: FieldInfo | None) -> list[str] | None:
    """Return the choices of an argument; the settings check them, not argparse."""
    named = {"method": list(METHODS), "preset": presets(), "name": list(DATASETS)}
    if action.dest in named:
        return named[action.dest]
    if field is not None and get_origin(field.annotation) is Literal:
        return [str(choice) for choice in get_args(field.annotation)]
    shown = action.metavar  # of settings inside settings
    return shown[1:-1].split(",") if isinstance(shown, str) and shown.startswith("{") else None
