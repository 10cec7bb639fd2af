"""Files behind a URL: itself, its wildcard matches, or the contents of its folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from kd3.errors import KD3Error
from kd3.pool.allowed import is_flat
from kd3.pool.record import Unreadable
from kd3.pool.remote import ARCHIVE_WAITS, filesystem, is_http, look, patiently
from kd3.pool.sources.names import shown

T = TypeVar("T")


def matches(url: str) -> list[str]:
    """Return the URLs that match one with stars, sorted; one without stands for itself.

    Raises:
        KD3Error: nothing matches, or it cannot be asked.
    """
    root, magic = _split(url)
    if not magic:
        return [url]
    found = _told(url, _glob)
    if not found:
        raise KD3Error(f"no file matches {shown(url)}")
    names = _relative(root, found)
    if odd := next((name for name in names if _is_chain(root, name)), None):
        raise KD3Error(f"{shown(url)} matches {odd!r}, which would stand for a chain of URLs; name what is meant")
    return [_child(root, name) for name in names]


def _glob(url: str) -> list[str]:
    system, path = filesystem(url)
    found: list[str] = patiently(url, lambda: sorted(system.glob(path)), ARCHIVE_WAITS)
    return found


def check_exists(url: str) -> None:
    """Check that a file or folder can be read.

    Raises:
        KD3Error: it cannot.
    """
    _told(url, look if is_http(url) else _info)


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


def walk_remote(url: str) -> Iterator[tuple[str | None, str, int | None]]:
    """Yield (URL, key, size where it is known) of all files below a folder, sorted; no URL where none can name it.

    Raises:
        Unreadable: it cannot be listed.
    """
    system, path = filesystem(url)
    found: dict[str, Any] = patiently(url, lambda: system.find(path, detail=True), ARCHIVE_WAITS)
    names = sorted(name for name, entry in found.items() if entry["type"] != "directory" and not name.endswith("/"))
    for name, key in zip(names, _relative(url, names), strict=True):
        yield None if _is_chain(url, key) else _child(url, key), key, found[name].get("size")


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


def _told(url: str, ask: Callable[[str], T]) -> T:
    try:
        return ask(url)
    except Unreadable as problem:
        detail = "does not exist" if problem.detail == "it does not exist" else f"cannot be read: {problem.detail}"
        raise KD3Error(f"source {shown(url)} {detail}") from None
