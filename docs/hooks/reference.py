"""Writes the reference pages from the code when the site is built: settings classes, `--help` texts."""

from __future__ import annotations

import typing
from typing import Any

import pydantic
from mkdocs.structure.files import File, Files

from kd3.config.command_table import COMMANDS
from kd3.config.flags import build_parser
from kd3.config.methods import METHODS
from kd3.config.settings import group_of

BARE_GROUPS = ("train",)


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    files.append(File.generated(config, "reference/settings.md", content=settings_page()))
    return files


def commands_page() -> str:
    """Return every command's `--help`."""
    parser = build_parser()
    (subparsers,) = (action.choices for action in parser._actions if hasattr(action, "choices") and action.choices)
    parts = ["# Commands", "", "Output of `kd3 COMMAND --help`; for `kd3 distill`, of `--help all`.", ""]
    for name in COMMANDS:
        parts += [f"## kd3 {name}", "", "```text", subparsers[name].format_help().rstrip(), "```", ""]
    return "\n".join(parts)


def settings_page() -> str:
    """Return every setting of every command: flag, name in YAML and Python, type, default, range."""
    parts = [
        "# Settings",
        "",
        "This page is generated from the settings classes, which check files, flags and Python arguments. A `--config` "
        "file has each setting under its name, and settings of a group under the group: `train: {lr: 0.05}`, "
        "`kd3: {threshold: 0.9}`. In Python: `lr=0.05`, `kd3={'threshold': 0.9}`.",
        "",
    ]
    for name, command in COMMANDS.items():
        parts += [f"## kd3 {name}", "", f"{command.summary}.", ""]
        parts += _table(command.settings, "", command.positional)
        for field, about in command.settings.model_fields.items():
            inner = group_of(command.settings, field)
            if inner is not None:
                title = METHODS[field].summary if field in METHODS else about.description or field
                parts += [f"### {name}: {field}", "", f"{title}.", ""]
                parts += _table(inner, "" if field in BARE_GROUPS else f"{field}.")
    return "\n".join(parts)


def _table(model: type[pydantic.BaseModel], prefix: str, positional: tuple[str, ...] = ()) -> list[str]:
    rows = ["| flag | type | default | |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        if group_of(model, name) is not None:
            continue
        flag = name.upper() if name in positional else f"--{prefix}{name}".replace("_", "-")
        if typing.get_origin(field.annotation) is dict:
            flag = f"{name} (only in a file)"
        limits = _limits(field.metadata)
        kind = _kind(field.annotation) + (f", {limits}" if limits else "")
        default = "required" if field.is_required() else _default(field.default)
        rows.append(f"| `{flag}` | {kind} | {default} | {_cell(field.description or '')} |")
    return [*rows, ""] if len(rows) > 2 else []


def _kind(annotation: Any) -> str:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin is typing.Annotated:
        return _kind(inner[0])
    if origin is list:
        return f"list of {_kind(inner[0])}"
    if origin is dict:
        return "mapping"
    kinds = [_kind(one) for one in inner if one is not type(None)]
    if kinds:
        return kinds[0]
    return {int: "integer", float: "number", str: "text", bool: "true or false"}.get(annotation, "text")


def _limits(metadata: list[Any]) -> str:
    signs = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    found = [(words, getattr(part, sign, None)) for part in metadata for sign, words in signs.items()]
    return ", ".join(f"{words} {value:,}" for words, value in found if value is not None)


def _default(value: Any) -> str:
    if value is None or value == []:
        return "none"
    if isinstance(value, list):
        return "`" + ",".join(map(str, value)) + "`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
