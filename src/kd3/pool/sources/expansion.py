"""Braces and globs in what a user names as sources."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence

from kd3.errors import KD3Error
from kd3.pool.record import printable
from kd3.pool.sources.folder import is_regular
from kd3.pool.sources.lists import check_list, is_list
from kd3.pool.sources.remote import find, is_url

BRACES = re.compile(r"\{([^{}]*)\}")
RANGE_LIMIT = 1_000_000


def expand(sources: Sequence[str]) -> list[str]:
    """Return the paths and URLs that sources with braces and globs stand for, in order.

    >>> expand_braces("a{00..02}.tar")
    ['a00.tar', 'a01.tar', 'a02.tar']

    Raises:
        KD3Error: a path or URL does not exist or cannot be reached, a glob matches nothing, or a list is none.
    """
    paths = []
    for source in sources:
        # A name that exists is meant as it is, whatever signs it holds.
        for path in [source] if os.path.exists(source) else expand_braces(source):
            if is_url(path):
                found, is_folder = find(path)
                paths += [path] if is_folder else [place for place, _ in found]
                continue
            is_glob = glob.has_magic(path)
            matches = sorted(glob.glob(path, recursive=True)) if is_glob and not os.path.exists(path) else [path]
            if not matches:
                raise KD3Error(f"no file matches {path}")
            if not os.path.exists(matches[0]):
                raise KD3Error(f"source {printable(path)} does not exist")
            for match in matches:
                if is_list(match) and is_regular(match):
                    check_list(match)
            paths += matches
    return paths


def expand_braces(pattern: str) -> list[str]:
    """Return `a{1..3}` as a1, a2, a3 (leading zeros kept) and `{x,y}` as x, y; several multiply."""
    match = BRACES.search(pattern)
    if not match:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if numbers:
        first, last = numbers[1], numbers[2]
        width = len(first) if first.startswith("0") else 1
        if int(last) < int(first) or int(last) - int(first) >= RANGE_LIMIT:
            raise KD3Error(f"the range {{{match[1]}}} in {pattern} is empty or has more than {RANGE_LIMIT:,} numbers")
        parts = [f"{n:0{width}d}" for n in range(int(first), int(last) + 1)]
    else:
        parts = match[1].split(",")
    return [pattern[: match.start()] + part + rest for part in parts for rest in expand_braces(pattern[match.end() :])]
