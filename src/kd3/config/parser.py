"""The parser of the command line, made from the table of commands. Free of torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from kd3.config.command_table import COMMANDS, Command
from kd3.config.distill_layers import presets
from kd3.config.flags import add_flags
from kd3.config.kinds import READING
from kd3.config.methods import METHODS
from kd3.errors import KD3Error, unknown_name
from kd3.version import __version__

# Groups of flags of `kd3 distill` by the word for `--help`.
TOPICS = {"training": "training", **{name: f"options of method {name}" for name in METHODS}}


class TopicHelp(argparse.Action):
    """`--help` without the groups of TOPICS and the flags on lists, `--help TOPIC` with one group, `--help all`."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs="?", default=argparse.SUPPRESS, metavar="TOPIC", help=help)

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: str | None = None
    ) -> None:
        if values not in (None, "all", *TOPICS):
            raise unknown_name("topic of --help", values, ["all", *TOPICS])
        groups = parser._action_groups
        if values is None:
            parser._action_groups = [group for group in groups if group.title not in TOPICS.values()]
            for group in parser._action_groups:
                group._group_actions = [action for action in group._group_actions if action.dest not in READING]
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
