"""From settings classes to command-line flags and back to a mapping."""

from __future__ import annotations

import argparse
import types
import typing
from typing import Any

import pydantic
from pydantic.fields import FieldInfo

from kd3.config.settings import group_of

# Groups whose flags carry no prefix: --lr, not --train.lr.
BARE_GROUPS = ("train",)
TRUE_OR_FALSE = "{true,false}"


def add_flags(
    parser: argparse.ArgumentParser, model: type[pydantic.BaseModel], positional: tuple[str, ...] = ()
) -> None:
    """Give the parser one flag for each setting; values stay text, the settings class reads them."""
    for name, field in model.model_fields.items():
        inner = group_of(model, name)
        if inner is not None:
            group = parser.add_argument_group(field.description or name)
            prefix = "" if name in BARE_GROUPS else f"{name}."
            for inner_name, inner_field in inner.model_fields.items():
                _add_flag(group, f"{name}.{inner_name}", prefix + inner_name, inner_field)
        elif typing.get_origin(field.annotation) is dict:
            continue  # only a file can hold these
        elif name in positional:
            many = typing.get_origin(field.annotation) is list
            parser.add_argument(
                name,
                metavar=name.upper() if not many else name.upper().rstrip("S"),
                nargs="+" if many else None,
                help=_escape(field.description or ""),
            )
        else:
            _add_flag(parser, name, name, field)


def _add_flag(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, path: str, flag: str, field: FieldInfo
) -> None:
    parser.add_argument(
        "--" + flag.replace("_", "-"),
        dest=path,
        action="append" if _is_repeated(field) else "store",
        metavar=_metavar(field, flag),
        default=argparse.SUPPRESS,
        help=_escape(_help(field)),
    )


def _is_repeated(field: FieldInfo) -> bool:
    """Say whether a flag is given once for each value: a list that is no list by commas."""
    by_commas = any(isinstance(part, pydantic.BeforeValidator) for part in field.metadata)
    return typing.get_origin(field.annotation) is list and not by_commas


def _escape(text: str) -> str:
    return text.replace("%", "%%")


def _help(field: FieldInfo) -> str:
    text = field.description or ""
    if field.is_required() or field.default in (None, []) or "(default" in text:
        return text
    default = field.default
    if isinstance(default, bool):
        default = str(default).lower()
    if isinstance(default, list):
        default = ",".join(map(str, default))
    return f"{text} (default: {default})"


def _metavar(field: FieldInfo, flag: str) -> str:
    annotation: Any = field.annotation
    options = [a for a in typing.get_args(annotation) if a is not type(None)]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType) and len(options) == 1:
        annotation = options[0]
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) is typing.Literal:
        return "{" + ",".join(map(str, typing.get_args(annotation))) + "}"
    if annotation is bool:
        return TRUE_OR_FALSE
    return {int: "N", float: "X"}.get(annotation, flag.rpartition(".")[2].upper())


def nested(flags: dict[str, Any]) -> dict[str, Any]:
    """Return dotted names as nested mappings.

    >>> nested({"train.lr": "0.1", "out": "runs/a"})
    {'train': {'lr': '0.1'}, 'out': 'runs/a'}
    """
    values: dict[str, Any] = {}
    for path, value in flags.items():
        *groups, name = path.split(".")
        place = values
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = value
    return values
