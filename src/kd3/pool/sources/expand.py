"""Expansion of given sources to existing paths and URLs: braces and globs."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence

from kd3.errors import KD3Error
from kd3.pool.allowed import as_path, is_remote, named_by_user
from kd3.pool.sources.elsewhere import check_exists, matches
from kd3.pool.sources.names import shown

BRACES = re.compile(r"\{([^{}]*)\}")
RANGE_LIMIT = 1_000_000
LOCAL = "file://"


class Expanded(list[str]):
    """Paths and URLs known to exist, so callers need not check again."""


def expand(sources: Sequence[str]) -> Expanded:
    """Return the paths and URLs that sources with braces and globs stand for, in order; unchanged if already expanded.

    >>> expand_braces("a{00..02}.tar")
    ['a00.tar', 'a01.tar', 'a02.tar']

    Raises:
        KD3Error: a path does not exist, a glob matches nothing; of URLs, a protocol's package is missing or the first
            that a source stands for cannot be read (each would be a request).
    """
    if isinstance(sources, Expanded):
        return sources
    paths = Expanded()
    for given in sources:
        source = given.removeprefix(LOCAL)
        if is_remote(source) and not os.path.exists(source):
            named_by_user(source)
            found = [url for part in expand_braces(source) for url in matches(part)]
            check_exists(found[0])
            paths += found
        elif os.path.exists(source):
            paths.append(as_path(source))  # an existing name is taken literally, with any characters
        else:
            paths += [path for part in expand_braces(source) for path in map(as_path, _on_disk(part))]
    return paths


def _on_disk(path: str) -> list[str]:
    is_glob = glob.has_magic(path)
    found = sorted(glob.glob(path, recursive=True)) if is_glob and not os.path.exists(path) else [path]
    if not found:
        raise KD3Error(f"no file matches {shown(path)}")
    if not os.path.exists(found[0]):
        raise KD3Error(f"source {shown(path)} does not exist")
    return found


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
            what = f"the range {{{match[1]}}} in {shown(pattern)}"
            raise KD3Error(f"{what} is empty or has more than {RANGE_LIMIT:,} numbers")
        parts = [f"{n:0{width}d}" for n in range(int(first), int(last) + 1)]
    else:
        parts = match[1].split(",")
    return [pattern[: match.start()] + part + rest for part in parts for rest in expand_braces(pattern[match.end() :])]
