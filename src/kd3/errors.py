"""The one error that a user can mend, and the sentences it is made of."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class KD3Error(Exception):
    """Something in the input is wrong and the user can mend it.

    The message is one sentence: what is wrong, where, and what is allowed. The command line
    prints it without a traceback and exits with status 2.
    """


def unknown_name(kind: str, name: str, known: Iterable[str], *, where: str | None = None) -> KD3Error:
    """Return the error for a name that is not in a list, with the nearest ones that are.

    >>> str(unknown_name("method", "kd33", ["kd", "kd3"]))
    "unknown method 'kd33'; did you mean 'kd3' or 'kd'? Known: kd, kd3"
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    question = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
    place = f" ({where})" if where else ""
    return KD3Error(f"unknown {kind} {name!r}{place}; {question}Known: {', '.join(names)}")
