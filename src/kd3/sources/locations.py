"""Given sources as existing paths and URLs: braces, stars, folders behind a URL, lists."""

from __future__ import annotations

import csv
import glob
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from threading import Lock
from typing import Any, TypeVar

from kd3.runtime import console
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import UTF16
from kd3.sources.containers import opened
from kd3.sources.files import shown
from kd3.sources.record import Label, NoImages, Unreadable, Unusable
from kd3.sources.remote import ARCHIVE_WAITS, check_readable, filesystem, is_http, patiently
from kd3.sources.remote_folders import files_below, matching
from kd3.sources.trust import as_path, is_flat, is_remote, named_by_user

T = TypeVar("T")
SHOWN = 3  # folders that cannot be listed


def matches(url: str) -> list[tuple[str, bool | None]]:
    """Return the URLs that match one with stars, sorted, and whether each is a folder; one without stands for itself.

    None: that is not known.

    Raises:
        KD3Error: nothing matches, or it cannot be asked.
    """
    root, magic = _split(url)
    if not magic:
        return [(url, None)]
    found = _asked(url, lambda url: _matching(url, root))
    if not found:
        raise KD3Error(f"no file matches {shown(url)}")
    names = _relative(root, list(found))
    if odd := next((name for name in names if _is_chain(root, name)), None):
        raise KD3Error(f"{shown(url)} matches {odd!r}, which would stand for a chain of URLs; name what is meant")
    return [(_child(root, name), kind) for name, kind in zip(names, found.values(), strict=True)]


def _matching(url: str, root: str) -> dict[str, bool | None]:
    found, unlisted = matching(root, _links(url)[0].removeprefix(_links(root)[0]))
    for entry in unlisted[:SHOWN]:
        assert entry.problem is not None
        console.warn(f"{shown(url)} may stand for more: {shown(entry.path)}: {entry.problem.detail}")
    if len(unlisted) > SHOWN:
        console.warn(f"{shown(url)} may stand for more: {len(unlisted):,} folders cannot be listed")
    return {entry.path: None if is_http(url) else entry.is_folder for entry in found}


def check_exists(url: str) -> bool | None:
    """Check that a file or folder can be read; return whether it is a folder, as `matches` does.

    Raises:
        KD3Error: it cannot.
    """
    if is_http(url):
        _asked(url, check_readable)
        return None
    return bool(_asked(url, _info)["type"] == "directory")


def _info(url: str) -> Any:
    system, path = filesystem(url)
    return patiently(url, lambda: system.info(path), ARCHIVE_WAITS)


def is_folder(url: str) -> bool:
    """Return whether a URL names a folder: by a final slash, the only sign on web servers; others are asked.

    Raises:
        Unreadable: it cannot be reached.
    """
    if _links(url)[0].endswith("/") or (is_http(url) and url.count("/") == 2):
        return True
    if is_http(url):
        return False
    return bool(_info(url)["type"] == "directory")


def walk_remote(url: str) -> Iterator[tuple[str | Unusable, str, int | None]]:
    """Yield (URL, key, size where it is known) of all files below a folder, sorted.

    In place of a URL stands the reason why there is none, for a folder that cannot be listed, too.

    Raises:
        Unreadable: it cannot be listed.
        NoImages: it is a web page that lists nothing.
    """
    found = sorted(files_below(url), key=lambda entry: entry.path)
    if is_http(url) and not found:
        raise NoImages("the page links to no file below it, as a web server's list of a folder does")
    names = _relative(url, [entry.path for entry in found])
    for entry, key in zip(found, names, strict=True):
        chained = Unusable("not allowed", "'::' in its name begins another URL") if _is_chain(url, key) else None
        yield entry.problem or chained or _child(url, key), key, entry.size


def _split(url: str) -> tuple[str, bool]:
    """Return the folder above the first star in a URL, and whether there is one."""
    first, chain = _links(url)
    # In the URL of a web page "?" begins the query, and "[" may stand around an address.
    star = re.search(r"\*" if is_http(url) else r"[*?\[]", first)
    return (first[: first.rindex("/", 0, star.start()) + 1] + chain, True) if star else (url, False)


def _relative(root: str, names: list[str]) -> list[str]:
    """Return what follows a folder in names of its file system, which know nothing of protocol and password."""
    start = filesystem(root)[1].rstrip("/") + "/"
    return [name.removeprefix(start).lstrip("/") for name in names]


def _child(root: str, relative: str) -> str:
    first, chain = _links(root)
    return f"{first}{'' if first.endswith('/') else '/'}{relative}{chain}"


def _links(url: str) -> tuple[str, str]:
    """Return a URL and the chain that follows it."""
    if is_flat(url):
        return url, ""
    first, chain, rest = url.partition("::")
    return first, chain + rest


def _is_chain(root: str, name: str) -> bool:
    """Return whether a file's name would be taken for a chain of URLs, behind that of its folder."""
    return "::" in name and not is_flat(root)


def _asked(url: str, ask: Callable[[str], T]) -> T:
    try:
        return ask(url)
    except Unreadable as problem:
        detail = "does not exist" if problem.detail == "it does not exist" else f"cannot be read: {problem.detail}"
        raise KD3Error(f"source {shown(url)} {detail}") from None


BRACES = re.compile(r"\{([^{}]*)\}")
RANGE_LIMIT = 1_000_000
LOCAL = "file://"


Listing = list[tuple[str | Unusable, str, int | None]]  # as `walk_remote` yields them


class Expanded(list[str]):
    """Paths and URLs known to exist, and what has been learned of them, so that nothing is asked twice.

    kinds: the kinds of files given as sources, by path; see `finding.check_given`.
    folders: whether URLs are folders, where that is known.
    total: the number of files and archives, once it has been counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kinds: dict[str, str | None] = {}
        self.folders: dict[str, bool] = {}
        self.total: int | None = None
        self._listings: dict[str, Listing] = {}
        self._lock = Lock()

    def is_folder(self, url: str) -> bool:
        """Return whether a URL names a folder; see the function `is_folder`."""
        if url not in self.folders:
            self.folders[url] = is_folder(url)
        return self.folders[url]

    def listing(self, url: str) -> Listing:
        """Return all files below a folder, asked for once, whichever thread asks; see `walk_remote`."""
        with self._lock:
            if url not in self._listings:
                self._listings[url] = list(walk_remote(url))
            return self._listings[url]


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
            found = [match for part in expand_braces(source) for match in matches(part)]
            first, is_known = found[0]
            if is_known is None:
                found[0] = first, check_exists(first)
            paths += [url for url, _ in found]
            paths.folders |= {url: kind for url, kind in found if kind is not None}
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


COLUMNS = ("path", "file", "file_path", "filepath", "file_name", "filename", "image_path", "url", "image_url", "image")
LABELS = ("label", "labels", "class", "class_name", "category", "target", "fine_label")
FIRST_BYTES = 1 << 12
FIRST_LINES = 10_000
PLAIN, WINDOWS = ("utf-8-sig", "surrogateescape"), ("utf-16", "replace")


def is_text(path: str) -> bool:
    """Return whether a file is text, not an image whose name lies; raises OSError, or as `opened_remote`."""
    with opened(path) as file:
        first = file.read(FIRST_BYTES)
        return first.startswith(UTF16) or b"\0" not in first


def listed(path: str) -> Iterator[tuple[str | Unusable, Label | None]]:
    """Yield the paths and URLs of a list, in order, as they stand there, each with its label where the list has them.

    An error in a row is yielded in its place.

    In a .csv or .tsv whose first row has one of the names of `COLUMNS` they are that column, else the first; of a .lst
    with tabs, as MXNet writes it, they are the last. Labels are a column of such a .csv or .tsv that is named as one of
    `LABELS`. Empty lines and those that begin with "#" are none.
    """
    for entry, label in _entries(path):
        if isinstance(entry, Unusable) or (entry and not entry.startswith("#")):
            yield entry, label


def check_list(path: str) -> None:
    """Check a list's first lines.

    Raises:
        KD3Error: it is empty.
    """
    if sum(1 for _ in islice(listed(path), FIRST_LINES)) == 0:
        raise KD3Error(f"{path} is a list without a path")


def _entries(path: str) -> Iterator[tuple[str | Unusable, Label | None]]:
    lower = path.partition("?")[0].lower()
    with opened(path) as file:
        is_utf16 = file.read(len(UTF16[0])) in UTF16
        file.seek(0)
        # Names need not be UTF-8.
        encoding, errors = WINDOWS if is_utf16 else PLAIN
        lines = io.TextIOWrapper(file, encoding=encoding, errors=errors, newline=None)
        if lower.endswith((".csv", ".tsv")):
            yield from _column(csv.reader(_without_nulls(lines), delimiter="\t" if lower.endswith(".tsv") else ","))
        elif lower.endswith(".lst"):
            yield from ((line.rpartition("\t")[2].strip(), None) for line in lines)
        else:
            yield from ((line.strip(), None) for line in lines)


def _column(rows: Iterator[list[str]]) -> Iterator[tuple[str | Unusable, Label | None]]:
    place: int | None = None
    labels: int | None = None
    is_first = True
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as problem:  # such as a field that never ends; the reader goes on behind it
            yield Unusable("unreadable", f"the row is no CSV: {problem}"), None
            continue
        if is_first:
            is_first = False
            names = [name.strip().lower() for name in row]
            place = next((names.index(name) for name in COLUMNS if name in names), None)
            if place is not None:
                labels = next((names.index(name) for name in LABELS if name in names), None)
                continue
        if len(row) > (place or 0):
            label = row[labels].strip() if labels is not None and len(row) > labels else ""
            yield row[place or 0].strip(), Label(name=label) if label else None


def _without_nulls(lines: Iterator[str]) -> Iterator[str]:
    return (line.replace("\0", "") for line in lines)
