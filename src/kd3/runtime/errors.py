"""The one error that a user can correct, its sentences, the exit statuses, and memory that ran out, in words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

EXIT_FAULT = 1
EXIT_WRONG_INPUT = 2
EXIT_TERMINATED = 75  # sysexits' EX_TEMPFAIL: try again later; a batch script can tell it from a crash and requeue
EXIT_INTERRUPTED = 130


class KD3Error(Exception):
    """Error in the input that the user can correct.

    The message is one sentence: problem, place, allowed values. The command line
    prints it without a traceback and exits with status 2.
    """


class FailedElsewhereError(KD3Error):
    """Another of several cooperating processes reports the error or the stop."""


LONGEST = 200  # characters of a value in a message
FIRST_LINE = 300  # characters of a library's message


def quoted(value: object) -> str:
    """Return a value for a message, its end left out where it is long.

    >>> quoted("a"), len(quoted("a" * 1000))
    ("'a'", 203)
    """
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def in_words(problem: BaseException) -> str:
    """Return what an error says: its class where it says nothing, and a sentence where it only names what is missing.

    >>> in_words(KeyError("size")), in_words(ValueError("too short")), in_words(EOFError())
    ("'size' is missing", 'too short', 'EOFError')
    """
    if isinstance(problem, KeyError) and problem.args:
        named = str(problem.args[0])
        return named if " " in named else f"{quoted(problem.args[0])} is missing"  # pyarrow and torch raise sentences
    return str(problem) or type(problem).__name__


def in_brief(problem: BaseException) -> str:
    """Return an error's class and the first line of its message; those of libraries may fill pages.

    >>> in_brief(ValueError("too short\\nin every way")), in_brief(TimeoutError())
    ('ValueError: too short', 'TimeoutError')
    """
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0][:FIRST_LINE]}" if lines else type(problem).__name__


def unknown_name(kind: str, name: str, known: Iterable[str], *, where: str | None = None) -> KD3Error:
    """Return the error for a name that is not in a list, with the nearest known names.

    >>> str(unknown_name("method", "kd33", ["kd", "kd3"]))
    "unknown method 'kd33'; did you mean 'kd3' or 'kd'? Known: kd, kd3"
    >>> str(unknown_name("method", "hinton", ["kd", "kd3"]))
    "unknown method 'hinton'; known: kd, kd3"
    """
    names = sorted(known)
    near = difflib.get_close_matches(name[:LONGEST], names, n=3, cutoff=0.6)
    rest = f"did you mean {' or '.join(repr(n) for n in near)}? Known: " if near else "known: "
    place = f" ({where})" if where else ""
    return KD3Error(f"unknown {kind} {quoted(name)}{place}; {rest}{', '.join(names)}")


ASKED = re.compile(r"[Tt]ried to allocate ([\d.]+ ?(?:bytes|[KMGT]iB))|you tried to allocate (\d+) bytes")
THERE = re.compile(r"total capacity of ([\d.]+ ?[KMGT]iB) of which ([\d.]+ ?(?:bytes|[KMGT]iB)) is free")


def out_of_memory_in_words(message: str, *, what: str, less: str, where: str = "GPU's memory") -> str:
    """Return the sentence.

    >>> out_of_memory_in_words("Tried to allocate 2.00 GiB.", what="a step", less="use a smaller batch")
    "the GPU's memory is not enough for a step: 2.00 GiB more were asked for; use a smaller batch"
    """
    asked, there = ASKED.search(message), THERE.search(message)
    amounts = ""
    if asked:
        size = asked[1] or f"{int(asked[2]) / 2**30:.2f} GiB"
        amounts = f": {size} more were asked for" + (f", where of {there[1]} {there[2]} are free" if there else "")
    return f"the {where} is not enough for {what}{amounts}; {less}"
