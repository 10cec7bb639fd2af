"""Whatever fsspec can read: `https://`, `s3://`, `gs://`, `hf://`, `memory://` and others.

Single images are fetched where they are decoded. An archive is copied to a temporary file, read as a local one and
removed, so that a disk needs room for one of them, and a server need not know ranges.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from kd3.errors import KD3Error
from kd3.pool.record import FILE_LIMIT, Unreadable, too_large

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[A-Za-z0-9+.-]+)*://", re.ASCII)
ATTEMPTS = 4
FIRST_PAUSE = 0.5  # seconds; doubled after each attempt
INSTALL = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "http": "aiohttp", "https": "aiohttp"}
SECRET = re.compile(r"sig|token|secret|key|credential|password|auth", re.I)
Result = TypeVar("Result")


def is_url(source: str) -> bool:
    """Say whether a source is a place that fsspec reads, not a path.

    >>> is_url("s3://bucket/a.tar"), is_url("crawl/a.tar"), is_url(r"C:\\crawl")
    (True, False, False)
    """
    return URL.match(source) is not None


def without_secrets(url: str) -> str:
    """Return a URL as it may be written down: no user and password, no signature.

    >>> without_secrets("https://me:pw@host/a.tar?part=1&X-Amz-Signature=abc")
    'https://host/a.tar?part=1&X-Amz-Signature=...'
    """
    parts = urlsplit(url)
    query = [(name, "..." if SECRET.search(name) else value) for name, value in parse_qsl(parts.query, True)]
    text = urlencode(query, safe="./", quote_via=quote)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, text, ""))


@dataclass(frozen=True, slots=True)
class Remote:
    """A file somewhere else."""

    url: str

    def read(self) -> bytes:
        """Return its bytes; network errors are tried again, with growing pauses.

        Raises:
            Unreadable: it cannot be had.
        """
        return _patiently(lambda: _fetch(self.url), self.url)


def find(url: str) -> tuple[list[tuple[str, str]], bool]:
    """Return what a URL or a pattern stands for, sorted, and whether it is a folder.

    Of each file the URL and its name: below the folder, or its last part.

    Raises:
        KD3Error: there is nothing, it cannot be reached, or a library for this kind of place is missing.
    """
    system, path = _open_system(url)
    shown = without_secrets(url)
    try:
        if any(sign in path for sign in "*?[") and not _patiently(lambda: system.exists(path), url):
            matches = sorted(_patiently(lambda: system.glob(path), url))
            if not matches:
                raise KD3Error(f"no file matches {shown}")
            return [(_url(system, match, url), last_part(match)) for match in matches], False
        # Over HTTP everything might be a folder: one that ends in a slash is.
        is_folder = path.endswith("/") if _is_http(url) else _patiently(lambda: system.isdir(path), url)
        if is_folder:
            root = path.rstrip("/") + "/"
            below = sorted(_patiently(lambda: system.find(path), url))
            return [(_url(system, place, url), place.removeprefix(root)) for place in below], True
        if not _patiently(lambda: system.exists(path), url):
            raise KD3Error(f"source {shown} does not exist")
    except Unreadable as problem:
        raise KD3Error(f"source {shown} cannot be reached: {problem.detail}") from None
    return [(url, last_part(url))], False


def last_part(url: str) -> str:
    """Return the name that a URL ends in.

    >>> last_part("https://host/shards/00000.tar?part=1")
    '00000.tar'
    """
    return urlsplit(url).path.rstrip("/").rpartition("/")[2] or urlsplit(url).netloc


def copied(url: str, folder: str) -> str:
    """Copy a remote file into a folder, under its own name; return the path.

    Raises:
        Unreadable: it cannot be had.
    """
    path = os.path.join(folder, last_part(url) or "archive")

    def copy() -> str:
        with _open(url) as handle, open(path, "wb") as target:
            shutil.copyfileobj(handle, target, 1 << 20)
        return path

    return _patiently(copy, url)


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for one copied archive, removed with all in it when left."""
    return tempfile.TemporaryDirectory(prefix="kd3-")


def _fetch(url: str) -> bytes:
    with _open(url) as handle:
        data: bytes = handle.read(FILE_LIMIT + 1)
    if len(data) > FILE_LIMIT:
        raise too_large()
    return data


def _open(url: str) -> Any:
    system, path = _open_system(url)
    # Nothing is kept for later reads: each file is read once, from its start.
    return system.open(path, "rb", cache_type="none") if not _is_http(url) else system.open(path, "rb", block_size=0)


def _open_system(url: str) -> tuple[Any, str]:
    import fsspec

    protocol = url.partition("://")[0].partition("::")[0]
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as problem:
        package = INSTALL.get(protocol)
        how = f"pip install {package}" if package else str(problem)
        raise KD3Error(f"{protocol}:// needs a library that is not installed: {how}") from None
    except ValueError as problem:
        raise KD3Error(f"source {without_secrets(url)}: {problem}") from None
    return system, path


def _url(system: Any, name: str, like: str) -> str:
    if URL.match(name):
        return name
    unstripped: str = system.unstrip_protocol(name)
    chain = like.rpartition("::")[0]
    return f"{chain}::{unstripped}" if chain else unstripped


def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _patiently(action: Callable[[], Result], url: str) -> Result:
    pause = FIRST_PAUSE
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except (Unreadable, KD3Error):
            raise
        except (FileNotFoundError, PermissionError) as problem:
            raise Unreadable("not downloaded", f"{type(problem).__name__}: {without_secrets(url)}") from None
        except Exception as problem:
            # aiohttp, botocore and others raise their own; what is wrong for good is wrong again.
            if attempt == ATTEMPTS:
                words = f"{type(problem).__name__} after {ATTEMPTS} attempts: {without_secrets(url)}"
                raise Unreadable("not downloaded", words) from None
        time.sleep(pause)
        pause *= 2
    raise AssertionError
