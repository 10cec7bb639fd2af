"""Command-line flags made from settings classes, and the conversion back to a mapping."""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import pydantic
from pydantic.fields import FieldInfo

from kd3.config.kinds import split_commas, split_semicolons
from kd3.config.settings import group_of
from kd3.errors import KD3Error

# Groups whose flags carry no prefix: --lr, not --train.lr.
BARE_GROUPS = ("train",)
ON, OFF = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


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
    name = "--" + flag.replace("_", "-")
    if field.annotation is bool:
        parser.add_argument(
            name,
            dest=path,
            action=argparse.BooleanOptionalAction,
            default=argparse.SUPPRESS,
            help=_escape(_help(field)),
        )
        return
    parser.add_argument(
        name,
        dest=path,
        action="append" if _is_repeated(field) else "store",
        metavar=_metavar(field, flag),
        default=argparse.SUPPRESS,
        help=_escape(_help(field)),
    )


def _is_repeated(field: FieldInfo) -> bool:
    """Return whether a flag is repeated for each value: a list not split by commas or semicolons."""
    split = any(getattr(part, "func", None) in (split_commas, split_semicolons) for part in field.metadata)
    return typing.get_origin(field.annotation) is list and not split


def _escape(text: str) -> str:
    return text.replace("%", "%%")


def _help(field: FieldInfo) -> str:
    text = field.description or ""
    if field.is_required() or field.default in (None, []) or "(default" in text:
        return text
    default = field.default
    if isinstance(default, bool):
        default = "on" if default else "off"
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
    return {int: "N", float: "X"}.get(annotation, flag.rpartition(".")[2].upper())


def plain_switches(arguments: Sequence[str], model: type[pydantic.BaseModel]) -> list[str]:
    """Return arguments in which `--int8 true` is `--int8`, and `--int8 false` or `--int8=no` is `--no-int8`.

    Raises:
        KD3Error: a switch has a value by `=` that is neither.
    """
    switches = {"--" + name.replace("_", "-") for name in _switches(model)}
    words = list(arguments)
    end = words.index("--") if "--" in words else len(words)
    plain = []
    place = 0
    while place < end:
        name, equals, value = words[place].partition("=")
        place += 1
        if name not in switches:
            plain.append(words[place - 1])
            continue
        if not equals and place < end and words[place].lower() in ON + OFF:
            value, place = words[place], place + 1
        if value.lower() not in ON + OFF and (value or equals):
            raise KD3Error(f"{name} is a switch: give {name} or --no-{name[2:]}, not {name}={value}")
        plain.append(f"--no-{name[2:]}" if value.lower() in OFF else name)
    return plain + words[end:]


def _switches(model: type[pydantic.BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        inner = group_of(model, name)
        if inner is not None:
            yield from _switches(inner, "" if name in BARE_GROUPS else f"{name}.")
        elif field.annotation is bool:
            yield prefix + name


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
