"""The one error that a user can correct, its sentences, and the exit statuses of a process."""

from __future__ import annotations

import difflib
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


class ToldByAnotherError(KD3Error):
    """Another of several cooperating processes reports the error or the stop."""


def unknown_name(kind: str, name: str, known: Iterable[str], *, where: str | None = None) -> KD3Error:
    """Return the error for a name that is not in a list, with the nearest known names.

    >>> str(unknown_name("method", "kd33", ["kd", "kd3"]))
    "unknown method 'kd33'; did you mean 'kd3' or 'kd'? Known: kd, kd3"
    >>> str(unknown_name("method", "hinton", ["kd", "kd3"]))
    "unknown method 'hinton'; known: kd, kd3"
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    rest = f"did you mean {' or '.join(repr(n) for n in near)}? Known: " if near else "known: "
    place = f" ({where})" if where else ""
    return KD3Error(f"unknown {kind} {name!r}{place}; {rest}{', '.join(names)}")
