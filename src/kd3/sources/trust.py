"""Names that a crawl may use, and the parts of a URL that may be written down.

Restrictions on the names in a crawl. Rows of tables and entries of lists are untrusted data. A source named by the
user is trusted and may be anything that fsspec opens. Its entries may be files below its folder, or URLs of one of
`PROTOCOLS`, none of which can start a chain of file systems.

Removal of secrets from URLs: scheme, host, port and path stay; all else may be secret. URLs that differ in the removed
parts stay different: a 32-bit digest replaces these parts, without known secrets and changing signatures. So a list
can be read again with renewed signatures.
"""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar
from urllib.parse import quote, unquote, urlsplit

from kd3.sources.record import Unreadable

PROTOCOLS = ("http", "https", "s3", "gs", "hf")
WEB = ("http", "https")
FLAG = "--trust-entries"
HOSTS_FLAG = "--private-hosts"
RESOLVE_SECONDS = 15.0
HERE = "an address of this machine or of a private network"
# IPv6 prefixes that gateways translate to IPv4.
TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
_PROTOCOL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)(?:://|::)")

Host = tuple[str | None, int | None]  # name and port, as a URL has them
Call = ParamSpec("Call")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Trust:
    """Permissions beyond the default for names and connections."""

    entries: bool = False  # rows and lists may name anything
    private_hosts: bool = False  # connections may lead to private networks
    of_user: frozenset[Host] = frozenset()  # servers of sources that the user has named
    addresses: frozenset[tuple[str, str]] = frozenset()  # of these by name: the private ones that each had then


_trust = Trust()


@contextmanager
def trusting(*, entries: bool = False, private_hosts: bool = False) -> Iterator[None]:
    """Let rows and lists name anything, or private servers, within the context."""
    before = _trust
    _set(entries=before.entries or entries, private_hosts=before.private_hosts or private_hosts)
    try:
        yield
    finally:
        _set(entries=before.entries, private_hosts=before.private_hosts)


def with_permissions(command: Callable[Call, Answer]) -> Callable[Call, Answer]:
    """Apply the permissions in a command's settings, its first argument."""

    @wraps(command)
    def trusted(*arguments: Call.args, **named: Call.kwargs) -> Answer:
        settings: Any = arguments[0]
        with trusting(entries=settings.trust_entries, private_hosts=settings.private_hosts):
            return command(*arguments, **named)

    return trusted


def named_by_user(url: str) -> None:
    """Let this process connect to a web server wherever it is now: the user has named it.

    Its name is resolved once, here, so that its owner cannot lead it to a private address later.
    """
    if is_flat(url) and protocol(url) in WEB:  # in other protocols the "host" may be a bucket
        host, port = _host(url)
        found: set[tuple[str, str]] = set()
        if host and host not in {name for name, _ in _trust.of_user}:
            found = {(host, address) for address in _addresses(host) if is_private_address(address)}
        _set(of_user=_trust.of_user | {(host, port)}, addresses=_trust.addresses | found)


def trust_for_good(trust: Trust) -> None:
    """Adopt another process's permissions for the life of this one, a decoding process."""
    global _trust
    _trust = trust


def trust() -> Trust:
    """Return the permissions of this process, for those that it starts."""
    return _trust


def anywhere_allowed() -> bool:
    """Return whether the user allowed connections to any private address."""
    return _trust.entries or _trust.private_hosts


def trusted_host(url: str) -> str | None:
    """Return the host of a URL that may be private: one that the user named or allowed explicitly."""
    return _host(url)[0] if _host(url) in _trust.of_user or is_private(url) else None


def _set(**changes: Any) -> None:
    global _trust
    _trust = replace(_trust, **changes)


def is_remote(path: str) -> bool:
    """Return whether a source is a URL or a chain of them, not a path.

    >>> is_remote("s3://bucket/a.tar"), is_remote("zip://a.png::s3://b/c.zip"), is_remote("C:/a"), is_remote("a/b")
    (True, True, False, False)
    """
    return _PROTOCOL.match(path) is not None


def protocol(url: str) -> str:
    """Return the text before the first "://" or "::", in lower case."""
    match = _PROTOCOL.match(url)
    assert match is not None
    return match[1].lower()


def is_flat(url: str) -> bool:
    """Return whether a URL is of one of the `PROTOCOLS`, in which "::" is a part of a name."""
    return is_remote(url) and protocol(url) in PROTOCOLS and url[len(protocol(url)) :].startswith("://")


def as_path(path: str) -> str:
    """Return a local path in a form that cannot be taken for a URL.

    >>> as_path("gs::y.png"), as_path("a/b")
    ('./gs::y.png', 'a/b')
    """
    return os.path.join(".", path) if is_remote(path) else path


def beside(path: str, entry: str) -> str:
    """Return the path or URL of an entry of the file `path`: relative to its folder, unless it is absolute.

    Raises:
        Unreadable: the entry is not allowed.
    """
    if is_flat(entry):
        url = protocol(entry) + entry[len(protocol(entry)) :]
        allowed = _trust.entries or _trust.private_hosts or _host(url) in (_host(path), *_trust.of_user)
        if is_private(url) and not allowed:
            raise Unreadable("not allowed", f"it names {HERE}; {HOSTS_FLAG} allows it")
        return url
    if is_remote(path):
        if is_remote(entry):
            return _whole(entry)
        if "::" in entry and not is_flat(path):
            raise Unreadable("not allowed", "with '::' in it, it would stand for a chain of URLs")
        return f"{path.partition('?')[0].rpartition('/')[0]}/{entry.lstrip('/')}"
    folder = os.path.dirname(path)
    local = os.path.join(folder, entry.removeprefix("file://"))
    if is_remote(entry) and not entry.startswith("file://") and not os.path.lexists(local):
        return _whole(entry)
    if not _trust.entries and not _lies_in(folder, local):
        raise Unreadable("not allowed", f"it lies outside the folder of what names it; {FLAG} allows it")
    return as_path(local)


def _whole(entry: str) -> str:
    if _trust.entries:
        return entry
    allowed = ", ".join(f"{name}://" for name in PROTOCOLS)
    raise Unreadable("not allowed", f"lists and tables may name {allowed}, not {protocol(entry)}; {FLAG} allows it")


def _lies_in(folder: str, path: str) -> bool:
    whole, above = os.path.abspath(path), os.path.abspath(folder)
    return os.path.commonpath([whole, above]) == above


def is_private(url: str) -> bool:
    """Return whether a URL names this machine or a private network explicitly, by an address or as "localhost"."""
    return _is_private_name(_host(url)[0] or "")


def _is_private_name(host: str) -> bool:
    host = host.rstrip(".")
    return host == "localhost" or host.endswith(".localhost") or is_private_address(host)


def is_private_address(address: str) -> bool:
    """Return whether an IP address is not on the public internet: loopback, link-local, private, reserved,
    multicast.
    """
    try:
        ip: Any = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if ip.version == 6:
        ip = ip.ipv4_mapped or ip.sixtofour or (ip in TRANSLATED and ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)) or ip
    return not ip.is_global or bool(ip.is_multicast)


def guarded_socket(info: tuple[Any, ...], trusted: str | None = None) -> socket.socket:
    """Return a socket for a connection to one of a host's addresses, unless it leads to a private one.

    This checks the final address, after name resolution and redirects. The addresses that the host `trusted` had when
    the user named it are exempt; it may redirect to itself, but to no other private host.

    Raises:
        OSError: the address is private.
    """
    family, kind, number, _, address = info
    if is_private_address(str(address[0])) and not (trusted and _is_of(trusted, str(address[0]))):
        raise OSError(errno.EACCES, f"{address[0]} is {HERE}")
    return socket.socket(family, kind, number)


def _is_of(host: str, address: str) -> bool:
    if _is_private_name(host):
        return address in _addresses(host)
    return (host, address) in _trust.addresses


def _addresses(host: str) -> set[str]:
    """Return the addresses of a host; none where the answer takes too long. Ctrl-C ends the wait."""
    found: set[str] = set()

    def ask() -> None:
        with suppress(OSError, UnicodeError):
            found.update(str(info[4][0]) for info in socket.getaddrinfo(host, None))

    asking = threading.Thread(target=ask, name="kd3-resolve", daemon=True)
    asking.start()
    asking.join(RESOLVE_SECONDS)
    return set() if asking.is_alive() else found


def _host(url: str) -> Host:
    try:
        parts = urlsplit(url)
        return parts.hostname, parts.port
    except ValueError:
        return None, None


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
WEB_URLS = ("http://", "https://")
BASE = "http://host/"
SHORTEST = 3  # signs of a secret that is looked for in messages


def without_secrets(text: str) -> str:
    """Reduce the URLs in a text, such as a message, to scheme, host and path.

    >>> without_secrets("https://me:pw@host/a.jpg?w=2&X-Amz-Signature=abc is gone")
    'https://***@host/a.jpg?~c9b5a2b3 is gone'
    """
    return _IN_TEXT.sub(_written, text) if "://" in text else text


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
    if not url.startswith(WEB_URLS) or "://" in name:
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


def _written(match: re.Match[str]) -> str:
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
    kept = [
        field
        for field, name in zip(fields, names, strict=True)
        if not _SECRET.search(name) and not (signed and _OF_AZURE.fullmatch(name))
    ]
    if has_fragment and fragment:
        kept.append("#" + fragment)
    return hashlib.sha256("&".join(kept).encode("utf-8", "surrogatepass")).hexdigest()[:DIGITS] if kept else ""
