"""Removal of secrets from URLs: scheme, host, port and path stay; all else may be secret.

URLs that differ in the removed parts stay different: a 32-bit digest replaces these parts, without known secrets and
changing signatures. So a list can be read again with renewed signatures.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

from kd3.pool.allowed import is_flat

HIDDEN = "***"
DIGITS = 8  # hexadecimal, of the digest
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_IN_TEXT = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://\S+")
_AFTER_A_URL = "'\"<>()[]{},.;:!"
_HOST = re.compile(r"(?:[\w.~*%-]*|\[[0-9a-fA-F:.%]*\])(?::\d*)?")
_QUERY = re.compile(r"[?#]|%3f|%23", re.IGNORECASE)
_PARAMETERS = re.compile(r"(?:;|%3b)[^/]*", re.IGNORECASE)
_DIGEST = re.compile(rf"\?~([0-9a-f]{{{DIGITS}}})")
# Names without "-", "_" and "."; what people call keys, and what AWS, Google and Azure sign with.
_SECRET = re.compile(
    r"signature|credential|token|secret|passw|pwd|auth|apikey|accesskey|accessid|policy|keypairid|subscriptionkey|jwt|"
    r"session|^sig$|^key$|^code$|^sid$|^expires?$|^xamz|^xgoog"
)
# Beside "sig", and renewed with it.
_OF_AZURE = re.compile(r"s[vpetri]|s[sr]t?|spr|sip|sk(?:oid|tid|[tesv])")
WEB = ("http://", "https://")
BASE = "http://host/"
SHORTEST = 3  # signs of a secret that is looked for in messages


def without_secrets(text: str) -> str:
    """Reduce the URLs in a text, such as a message, to scheme, host and path.

    >>> without_secrets("https://me:pw@host/a.jpg?w=2&X-Amz-Signature=abc is gone")
    'https://***@host/a.jpg?~c9b5a2b3 is gone'
    """
    return _IN_TEXT.sub(_told, text) if "://" in text else text


def written(url: str) -> str:
    """Return a URL, or a chain of them, in a form safe to store; idempotent."""
    if is_flat(url):
        return _link(url)
    first, *others = url.split("::")
    return "::".join([_link(first), *(_link(link, behind_a_url="://" in first) for link in others)])


def path_of(url: str) -> str:
    """Return a URL of the web without user, query, fragment and parameters of its path.

    >>> path_of("https://me:pw@host/a;v=1/b.tar;jsessionid=2?w=3#4")
    'https://host/a/b.tar'
    """
    scheme, mark, rest = url.partition("://")
    _, host, after = _split(rest)
    return f"{scheme}{mark}{host}{_PARAMETERS.sub('', _QUERY.split(after, maxsplit=1)[0])}"


def written_beside(url: str, name: str) -> str:
    """Return a name that a page or list of the web at `url` gives relative to itself as it may be written down."""
    if not url.startswith(WEB) or "://" in name:
        return written(name)
    return _link(BASE + name).removeprefix(BASE)


def shareable(settings: Any) -> Any:
    """Return settings, nested or not, with their URLs as they may be written where other people read them."""
    if isinstance(settings, Mapping):
        return {name: shareable(value) for name, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return [shareable(value) for value in settings]
    return written(settings) if isinstance(settings, str) and "://" in settings else settings


def secrets_of(url: str) -> list[str]:
    """Return the parts of a URL that must not appear in a message, the longest first, encoded or not."""
    found: set[str] = set()
    for link in [url] if is_flat(url) else url.split("::"):
        start = _SCHEME.match(link)
        user, _, rest = _split(link[start.end() :]) if start else ("", "", "")
        place = _QUERY.search(rest)
        behind = rest[place.end() :] if place else ""
        parts = [user, *user.split(":", 1), behind, *_PARAMETERS.findall(rest)]
        parts += [value for part in re.split("[&;#?]", behind) for value in (part, part.partition("=")[2])]
        found.update(form for part in parts for form in (part, unquote(part), quote(part), quote(part, safe="")))
    return sorted((part for part in found if len(part) >= SHORTEST), key=len, reverse=True)


def _told(match: re.Match[str]) -> str:
    url = match[0].rstrip(_AFTER_A_URL)
    return written(url) + match[0][len(url) :]


def _link(link: str, *, behind_a_url: bool = False) -> str:
    start = _SCHEME.match(link)
    if start is None:  # "simplecache" in a chain, or a piece of what is none
        return HIDDEN if behind_a_url and not re.fullmatch(r"[\w+.-]*", link) else link
    user, host, rest = _split(link[start.end() :])
    place = _QUERY.search(rest)
    path, behind = (rest[: place.start()], rest[place.start() :]) if place else (rest, "")
    dropped = "".join(_PARAMETERS.findall(path))
    path = _PARAMETERS.sub("", path)
    known = _DIGEST.fullmatch(behind)
    digest = (
        known[1] if known and not dropped else _digest(dropped, behind, has_fragment=not start[0].startswith("http"))
    )
    return f"{start[0]}{HIDDEN + '@' if user else ''}{host}{path}{'?~' + digest if digest else ''}"


def _split(rest: str) -> tuple[str, str, str]:
    """Return user and password, host and port, and what follows, of what stands behind "://"."""
    end = re.search(r"[/?#]", rest)
    authority = rest[: end.start()] if end else rest
    after = rest[len(authority) :]
    user, at, host = authority.rpartition("@")
    if at:  # a later one would end a password with "@" and "/" in it
        user = re.split(r"[?#]", rest, maxsplit=1)[0].rpartition("@")[0]
        host = re.split(r"[/?#]", rest[len(user) + 1 :], maxsplit=1)[0]
        after = rest[len(user) + 1 + len(host) :]
    elif not _HOST.fullmatch(authority) and "@" in rest:
        # A password with "/", "?" or "#" in it, as people paste them.
        user, _, rest = rest.rpartition("@")
        end = re.search(r"[/?#]", rest)
        host = rest[: end.start()] if end else rest
        after = rest[len(host) :]
    return user, host if _HOST.fullmatch(host) else HIDDEN, after


def _digest(parameters: str, behind: str, *, has_fragment: bool) -> str:
    """Return the digest of the omitted parts that are not secret; empty if there are none."""
    query, _, fragment = behind.partition("#")
    fields = [field for field in re.split("[&;?]", f"{parameters}&{query}") if field]
    names = [re.sub(r"[-_.]", "", unquote(unquote(field.partition("=")[0]))).lower() for field in fields]
    signed = "sig" in names
    told = [
        field
        for field, name in zip(fields, names, strict=True)
        if not _SECRET.search(name) and not (signed and _OF_AZURE.fullmatch(name))
    ]
    if has_fragment and fragment:
        told.append("#" + fragment)
    return hashlib.sha256("&".join(told).encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS] if told else ""
