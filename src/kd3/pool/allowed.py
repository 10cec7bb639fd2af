"""What a crawl may name. Rows of tables and entries of lists come from strangers: they are data, and no orders.

A source that the user names is the user's own word, and may be anything that fsspec opens. What stands in it may be a
file below its folder, or a URL of one of `PROTOCOLS`, which never stand for a chain of file systems.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from kd3.pool.record import Unreadable

PROTOCOLS = ("http", "https", "s3", "gs", "hf")
FLAG = "--trust-entries true"
# Where clouds tell their machines who they are, besides 169.254.169.254, which is link-local.
OF_THE_CLOUD = ("fd00:ec2::254", "100.100.100.200")
HERE = "an address of this machine or of its own link"
_PROTOCOL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)(?:://|::)")

_trusted = False


@contextmanager
def trusting(entries: bool) -> Iterator[None]:
    """Within, let rows and lists name whatever they like, where the user says so."""
    global _trusted
    before, _trusted = _trusted, _trusted or entries
    try:
        yield
    finally:
        _trusted = before


def trust_for_good(entries: bool) -> None:
    """Do the same for as long as this process lives: one of those that decode."""
    global _trusted
    _trusted = entries


def trusts_entries() -> bool:
    """Say whether rows and lists may name whatever they like."""
    return _trusted


def is_remote(path: str) -> bool:
    """Say whether a source is a URL or a chain of them, not a path.

    >>> is_remote("s3://bucket/a.tar"), is_remote("zip://a.png::s3://b/c.zip"), is_remote("C:/a"), is_remote("a/b")
    (True, True, False, False)
    """
    return _PROTOCOL.match(path) is not None


def protocol(url: str) -> str:
    """Return what stands before the first "://" or "::", in small letters."""
    match = _PROTOCOL.match(url)
    assert match is not None
    return match[1].lower()


def is_flat(url: str) -> bool:
    """Say whether a URL is of one of the `PROTOCOLS`, in which "::" is a part of a name."""
    return is_remote(url) and protocol(url) in PROTOCOLS and url[len(protocol(url)) :].startswith("://")


def as_path(path: str) -> str:
    """Return a path of this machine in a form that nothing takes for a URL.

    >>> as_path("gs::y.png"), as_path("a/b")
    ('./gs::y.png', 'a/b')
    """
    return os.path.join(".", path) if is_remote(path) else path


def beside(path: str, entry: str) -> str:
    """Return the path or URL that an entry of the file `path` means: relative to its folder, unless it is whole.

    Raises:
        Unreadable: the entry is not allowed.
    """
    if is_flat(entry):
        url = protocol(entry) + entry[len(protocol(entry)) :]
        if not _trusted and is_here(url) and _host(url) != _host(path):
            raise Unreadable("not allowed", f"it names {HERE}; {FLAG} allows it")
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
    if not _trusted and not _lies_in(folder, local):
        raise Unreadable("not allowed", f"it lies outside the folder of what names it; {FLAG} allows it")
    return as_path(local)


def _whole(entry: str) -> str:
    if _trusted:
        return entry
    allowed = ", ".join(f"{name}://" for name in PROTOCOLS)
    raise Unreadable("not allowed", f"lists and tables may name {allowed}, not {protocol(entry)}; {FLAG} allows it")


def _lies_in(folder: str, path: str) -> bool:
    whole, above = os.path.abspath(path), os.path.abspath(folder)
    return os.path.commonpath([whole, above]) == above


def is_here(url: str) -> bool:
    """Say whether a URL names this machine or its own link outright, by an address or as "localhost"."""
    host = (_host(url)[0] or "").rstrip(".")
    return host == "localhost" or host.endswith(".localhost") or is_own_address(host)


def is_own_address(address: str) -> bool:
    """Say whether an IP address is a loopback, link-local, unspecified or multicast one, or a cloud's own service."""
    try:
        ip: Any = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    ip = getattr(ip, "ipv4_mapped", None) or ip
    return bool(ip.is_loopback or ip.is_link_local or ip.is_unspecified or ip.is_multicast or str(ip) in OF_THE_CLOUD)


def guarded_socket(info: tuple[Any, ...]) -> socket.socket:
    """Return a socket for a connection to one of a host's addresses, unless it leads to this machine.

    Whatever name was asked for or redirected to, this sees the address that is connected to.

    Raises:
        OSError: it does.
    """
    family, kind, number, _, address = info
    if is_own_address(str(address[0])):
        raise OSError(errno.EACCES, f"{address[0]} is {HERE}")
    return socket.socket(family, kind, number)


def _host(url: str) -> tuple[str | None, int | None]:
    try:
        parts = urlsplit(url)
        return parts.hostname, parts.port
    except ValueError:
        return None, None
