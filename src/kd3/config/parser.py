"""The parser of the command line, made from the table of commands. Free of torch."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from kd3.config.command_table import COMMANDS, Command
from kd3.config.distill_layers import presets
from kd3.config.flags import add_flags
from kd3.errors import KD3Error
from kd3.version import __version__


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
        "using nothing but images crawled from the web.",
        epilog="the main job:\n"
        "  kd3 ingest crawl/ --out pool --image-size 32\n"
        "  kd3 distill --teacher teacher.yaml --student kd3:resnet20 --pool pool --out runs/a\n"
        "  kd3 evaluate runs/a --data test/ --teacher teacher.yaml\n\n"
        "'kd3 COMMAND --help' tells of each command; 'kd3 demo' shows it all on data made here.",
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
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_flags(parser, command.settings, command.positional)
    if name == "distill":
        parser.add_argument("--config", metavar="FILE", help="YAML file of settings; flags win over it")
        parser.add_argument("--preset", metavar="NAME", help=f"named settings to start from: {', '.join(presets())}")
        parser.add_argument(
            "--resume",
            action="store_true",
            help="continue the interrupted run in --out, with its own settings",
        )
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="read, check and resolve everything and say what the run would be; train and write nothing",
        )
    if command.json:
        parser.add_argument("--json", action="store_true", help="print JSON alone on standard output")
    parser.add_argument("--quiet", action="store_true", help="no progress, no news; warnings stay")
