"""`kd3 methods`, `kd3 schema` and `kd3 completion`: kd3 described for people, editors and shells."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from kd3.config.command_table import COMMANDS
from kd3.config.commands import CompletionConfig, MethodsConfig, SchemaConfig
from kd3.config.distill import DistillConfig, presets
from kd3.config.flags import build_parser
from kd3.config.methods import METHODS
from kd3.config.published import DATASETS
from kd3.config.settings import Settings
from kd3.models.descriptions import TeacherDescription
from kd3.studies.plan import StudyFile


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


def list_methods(config: MethodsConfig) -> Methods:
    """Run the command line's settings."""
    return Methods()


DIALECT = "https://json-schema.org/draft/2020-12/schema"  # as pydantic


@dataclass(frozen=True)
class Schema:
    """A JSON schema."""

    content: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return it."""
        return self.content

    def __str__(self) -> str:
        return json.dumps(self.content, indent=2, ensure_ascii=False)


def schema(file: str) -> dict[str, Any]:
    """Return the JSON schema of a kind of file: "distill", "teacher" or "study"."""
    if file == "distill":
        found = _of(DistillConfig, "Settings of kd3 distill, for --config; flags win over them")
        # Settings missing in the file may be flags.
        del found["required"]
        found["properties"]["preset"] = {"enum": presets(), "description": "named settings to start from"}
        return found
    if file == "teacher":
        found = _of(TeacherDescription, "A trained classifier: how to build it, its weights, what it expects to see")
        # A library may provide the others.
        found["required"] = ["arch"]
        return found
    return _of(StudyFile, "A study: rows of settings, run at an equal budget")


def print_schema(config: SchemaConfig) -> Schema:
    """Run the command line's settings."""
    return Schema(schema(config.file))


def _of(model: type[Settings], title: str) -> dict[str, Any]:
    found = {"$schema": DIALECT, **model.model_json_schema(), "title": title}
    _limit_counts(found)
    return found


def _limit_counts(part: Any) -> None:
    """Apply a count's limit to numbers only, since counts may also be text."""
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        _limit_counts(inner)
    if isinstance(part, dict) and "ge" in part and "anyOf" in part:
        part["anyOf"][0]["minimum"] = part.pop("ge")


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


def print_completion(config: CompletionConfig) -> Script:
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
