"""Flags made from settings classes, the parser of the command line, and the way back to a mapping. Free of torch."""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import pydantic
from pydantic.fields import FieldInfo

from kd3.config.command_table import COMMANDS, Command
from kd3.config.distill import presets
from kd3.config.methods import METHODS
from kd3.config.settings import (
    BARE_GROUPS,
    READING,
    RENAMED,
    Settings,
    group_of,
    renamed,
    split_commas,
    split_semicolons,
)
from kd3.runtime.errors import KD3Error, unknown_name
from kd3.version import __version__

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
    for old, new in RENAMED.items():
        if new == flag:  # under its old path, so that its settings rename it and refuse both at once
            old_path = path.removesuffix(new) + old
            parser.add_argument(
                "--" + old.replace("_", "-"), dest=old_path, default=argparse.SUPPRESS, help=argparse.SUPPRESS
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


def as_groups(model: type[Settings], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `lr=0.1` as `{"train": {"lr": 0.1}}`: the names are the command line's.

    Unknown names stay where they are and are refused, with the nearest one, when the settings are built.
    """
    nested: dict[str, Any] = {}
    for name, value in renamed(values).items():
        group = next((g for g in BARE_GROUPS if name not in model.model_fields and name in _fields(model, g)), None)
        if group is None:
            nested[name] = {**nested.get(name, {}), **value} if isinstance(value, Mapping) else value
        else:
            nested.setdefault(group, {})[name] = value
    return nested


def _fields(model: type[Settings], group: str) -> dict[str, Any]:
    inner = group_of(model, group)
    return dict(inner.model_fields) if inner else {}


# Groups of flags of `kd3 distill` by the word for `--help`.
BUDGET = "train.images"
TOPICS = {"training": "training", **{name: f"options of method {name}" for name in METHODS}}


class TopicHelp(argparse.Action):
    """`--help` without the groups of TOPICS, but with the budget, and without the flags on lists; `--help TOPIC` with
    one group; `--help all`.
    """

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs="?", default=argparse.SUPPRESS, metavar="TOPIC", help=help)

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        if values not in (None, "all", *TOPICS):
            raise unknown_name("topic of --help", values, ["all", *TOPICS])
        groups = parser._action_groups
        if values is None:
            budget = [action for group in groups for action in group._group_actions if action.dest == BUDGET]
            parser._action_groups = [group for group in groups if group.title not in TOPICS.values()]
            for group in parser._action_groups:
                group._group_actions = [action for action in group._group_actions if action.dest not in READING]
            parser._action_groups[-1]._group_actions += budget
        elif values != "all":
            parser._action_groups = [group for group in groups if group.title == TOPICS[values]]
            parser.epilog = None
            if not parser._action_groups or not parser._action_groups[0]._group_actions:
                parser.epilog = f"method {values} has no options of its own"
        parser.print_help()
        parser.exit()


class Parser(argparse.ArgumentParser):
    """Reports wrong flags as KD3Error, with the nearest right one."""

    def error(self, message: str) -> NoReturn:
        raise KD3Error(f"{message}; see '{self.prog} --help'")


def build_parser() -> Parser:
    """Return the parser of all commands."""
    parser = Parser(
        prog="kd3",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Turn a trained image classifier whose training data is gone into a small, fast one,\n"
        "using only images crawled from the web.",
        epilog="the main job:\n"
        "  kd3 ingest crawl/ --out pool --image-size 32\n"
        "  kd3 distill --teacher teacher.yaml --student kd3:resnet20 --pool pool --out runs/a\n"
        "  kd3 evaluate runs/a --data test/ --teacher teacher.yaml\n\n"
        "'kd3 COMMAND --help' explains a command; 'kd3 demo' runs everything on generated data.",
    )
    parser.add_argument("--version", action="version", version=f"kd3 {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, command in COMMANDS.items():
        _add_command(commands, name, command)
    return parser


def _add_command(commands: Any, name: str, command: Command) -> None:
    parser = commands.add_parser(
        name,
        usage=command.usage,
        help=command.summary,
        description=command.summary + ".",
        epilog=command.examples,
        allow_abbrev=False,
        add_help=name != "distill",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if name == "distill":
        parser.add_argument("-h", "--help", action=TopicHelp, help=f"more help on {', '.join(TOPICS)} or all")
    add_flags(parser, command.settings, command.positional)
    if name == "distill":
        parser.add_argument("--config", metavar="FILE", help="YAML file of settings; flags win over it")
        parser.add_argument("--preset", metavar="NAME", help=f"named settings to start from: {', '.join(presets())}")
        parser.add_argument(
            "--resume",
            action="store_true",
            help="continue the interrupted run in --out",
        )
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="check and describe the run; train and write nothing",
        )
    if command.json:
        parser.add_argument("--json", action="store_true", help="print only JSON on standard output")
    parser.add_argument("--quiet", action="store_true", help="hide progress and notes, but not warnings")
