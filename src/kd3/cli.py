"""The command line: parse, import one command, print its result or its error, choose the exit status.

Status 0: done; 2: wrong input (one sentence, no traceback); 130: interrupted by Ctrl-C; 75: ended by SIGTERM or
SIGUSR1, with work saved for a resumption; 1: a bug in kd3 (a traceback).
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from kd3.config.command_table import COMMANDS
from kd3.config.distill import layered, resumed
from kd3.config.flags import Parser, add_flags, build_parser, nested, plain_switches
from kd3.config.settings import COMMAND_LINE, Settings, build
from kd3.runtime import console
from kd3.runtime.errors import (
    EXIT_FAULT,
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    EXIT_WRONG_INPUT,
    FailedElsewhereError,
    KD3Error,
    out_of_memory_in_words,
    unknown_name,
)
from kd3.runtime.files import FORBIDDEN, FULL
from kd3.runtime.interruption import Terminated, end_with_parent, ended_by_signals, leave

LESS = "free some of it, or use --device cpu"
LESS_MEMORY = "free some of it, or take fewer or smaller images"


def process() -> None:
    """Run the command line as a process and exit with its status."""
    status = main()
    if status in (EXIT_INTERRUPTED, EXIT_TERMINATED):
        leave(status)
    sys.exit(status)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    try:
        with ended_by_signals():
            end_with_parent()
            return _run(list(sys.argv[1:] if arguments is None else arguments))
    except FailedElsewhereError:
        # Of several processes the first one's status counts; a failure status of another would make the launcher kill
        # the first.
        return 0 if console.is_silent() else EXIT_WRONG_INPUT
    except KD3Error as problem:
        console.fail(str(problem))
        return EXIT_WRONG_INPUT
    except KeyboardInterrupt as interrupt:
        if not console.is_silent():  # only the first of several processes reports
            console.fail(str(interrupt) or "interrupted")
        return EXIT_TERMINATED if isinstance(interrupt, Terminated) else EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output closed the pipe (`kd3 ... | head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError as problem:
        console.fail(f"the memory is not enough for this{f': {problem}' if str(problem) else ''}; {LESS_MEMORY}")
        return EXIT_WRONG_INPUT
    except OSError as problem:
        if problem.errno not in (*FULL, *FORBIDDEN):
            console.fault()
            return EXIT_FAULT
        console.fail(f"{problem.strerror}: {problem.filename or 'the disk that is written to'}")
        return EXIT_WRONG_INPUT
    except Exception as problem:
        if type(problem).__name__ == "OutOfMemoryError":  # torch's; not imported just for this check
            console.fail(out_of_memory_in_words(str(problem), what="this", less=LESS))
            return EXIT_WRONG_INPUT
        console.fault()
        return EXIT_FAULT


def _run(arguments: list[str]) -> int:
    parser = build_parser()
    if not arguments:
        parser.print_help()
        return 0
    first = arguments[0]
    if not first.startswith("-") and first not in COMMANDS:
        raise unknown_name("command", first, COMMANDS)
    if first in COMMANDS:
        arguments = [first, *plain_switches(arguments[1:], COMMANDS[first].settings)]
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise _unknown_flag(known.command, unknown[0])
    given = vars(known)
    name = given.pop("command")
    if name is None:
        raise KD3Error(f"a command is missing; one of: {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    console.set_quiet(given.pop("quiet"))
    as_json = given.pop("json", False)
    extra: dict[str, Any] = {}
    if name == "distill":
        settings, extra = _distill_settings(given)
    else:
        settings = build(command.settings, nested(given), where=COMMAND_LINE, positional=command.positional)
    module, _, function = command.location.partition(":")
    result = getattr(import_module(module), function)(settings, **extra)
    if console.is_silent():
        return 0
    if as_json:
        console.json_result(result.to_dict())
    else:
        console.result(str(result))
    return 0


def _distill_settings(given: dict[str, Any]) -> tuple[Settings, dict[str, Any]]:
    resume, config, preset = given.pop("resume"), given.pop("config"), given.pop("preset")
    dry_run = given.pop("dry_run")
    flags = nested(given)
    if resume:
        if config or preset:
            raise KD3Error("--resume takes the settings from the run folder; leave --config and --preset out")
        return resumed(flags, where=COMMAND_LINE), {"resume": True, "dry_run": dry_run}
    path = Path(config) if config else None
    return layered(flags, config=path, preset=preset, where=COMMAND_LINE), {"resume": False, "dry_run": dry_run}


def _unknown_flag(command: str | None, flag: str) -> KD3Error:
    if not flag.startswith("-"):
        return KD3Error(f"unexpected argument {flag!r}; see 'kd3 {command or ''} --help'")
    known = ["--quiet", "--help"]
    if command:
        probe = Parser(add_help=False)
        add_flags(probe, COMMANDS[command].settings, COMMANDS[command].positional)
        shown = [action for action in probe._actions if action.help != argparse.SUPPRESS]
        known += [option for action in shown for option in action.option_strings]
        known += ["--config", "--preset", "--resume", "--dry-run"] if command == "distill" else []
        known += ["--json"] if COMMANDS[command].json else []
    name = flag.split("=")[0]
    if command is None or name in known:
        return KD3Error(
            f"unexpected {name} before the command; flags come after it: kd3 {command or 'COMMAND'} {name} ..."
        )
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    question = f"did you mean {near[0]}?" if near else f"see 'kd3 {command} --help'"
    return KD3Error(f"unknown flag {name}; {question}")


if __name__ == "__main__":
    process()
