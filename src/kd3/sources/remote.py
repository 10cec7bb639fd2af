"""Remote files, read through fsspec: s3://, gs://, hf://, https:// and its other protocols."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, BinaryIO, TypeVar, cast

from kd3.runtime.errors import KD3Error
from kd3.sources.record import FILE_LIMIT, Unreadable, too_large
from kd3.sources.trust import (
    HERE,
    HIDDEN,
    HOSTS_FLAG,
    anywhere_allowed,
    guarded_socket,
    is_flat,
    protocol,
    secrets_of,
    trusted_host,
    without_secrets,
    written,
)
from kd3.version import __version__

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "hf": "hf"}  # protocol -> extra of kd3
BLOCK = 1 << 20  # bytes of one request, more for sequential reads
STREAM_BLOCK = 8 << 20
ANSWER_LIMIT = 64 << 20  # bytes that are read at once: a page of links, or a range of a file
FETCH_LIMIT = 64 << 30  # bytes of an archive from a server without range requests, perhaps endless
IMAGE_WAITS = (0.5, 2.0)  # seconds before the second and the third attempt: a crawl's servers are many, and often dead
ARCHIVE_WAITS = (1.0, 4.0, 15.0)  # an archive is worth more
CONNECT_SECONDS, READ_SECONDS = 15.0, 60.0
LONGEST = 200  # characters of a failure message
PASSING = (408, 425, 429)  # HTTP's temporary client errors

T = TypeVar("T")


def is_http(url: str) -> bool:
    """Return whether a URL is on a web server."""
    return url.startswith(("http://", "https://"))


def filesystem(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the file's path in there.

    No request is made yet, except for the later URLs of a chain.

    Raises:
        KD3Error: the protocol's package is not installed.
        Unreadable: the protocol is unknown, or the URL makes no sense.
    """
    import fsspec

    options = _http_options(url) if is_http(url) else {}
    try:
        if not is_flat(url):
            system, path = fsspec.core.url_to_fs(url, **options)
            return system, str(path)
        # Not by `url_to_fs`, for which "::" in a name would begin another URL.
        name = protocol(url)
        system = fsspec.filesystem(name, **fsspec.get_filesystem_class(name)._get_kwargs_from_urls(url), **options)
        return system, str(system._strip_protocol(url))
    except ImportError as problem:
        name = protocol(url)
        install = f"pip install 'kd3[{EXTRAS[name]}]'" if name in EXTRAS else str(problem)
        raise KD3Error(f"{written(url)} cannot be read: support for {name}:// is missing: {install}") from None
    except Exception as problem:
        raise Unreadable("unreachable", described(problem, url)) from None


def _http_options(url: str) -> dict[str, Any]:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
    # Ranges of what was compressed on the way would be ranges of something else.
    headers = {"Accept-Encoding": "identity", "User-Agent": f"kd3/{__version__}"}
    options = {"client_kwargs": {"timeout": timeout, "response_class": _bounded_answer()}, "headers": headers}
    return options if anywhere_allowed() else {**options, "get_client": _guarded_client(trusted_host(url))}


@cache
def _bounded_answer() -> type:
    import aiohttp

    class Bounded(aiohttp.ClientResponse):
        """An answer that is read whole only up to a limit: a page, or what stands for a range, may be endless."""

        async def read(self) -> bytes:
            if self._body is None:
                parts = bytearray()
                async for part in self.content.iter_any():
                    parts += part
                    if len(parts) > ANSWER_LIMIT:
                        raise Unreadable(
                            "file too large", f"the server's answer has more than {ANSWER_LIMIT >> 20} MiB"
                        )
                self._body = bytes(parts)
            return self._body

    return Bounded


@cache  # fsspec keeps connections open for calls with the same options
def _guarded_client(host: str | None) -> Callable[..., Any]:
    async def client(**options: Any) -> Any:
        import aiohttp

        guarded = partial(guarded_socket, trusted=host)
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=guarded), **options)

    return client


def patiently(url: str, attempt: Callable[[], T], waits: Sequence[float]) -> T:
    """Call `attempt` with a URL, again after pauses if the network fails.

    Raises:
        Unreadable: permanent failure, failure of all attempts, or a private address.
        KD3Error: as the attempt does.
    """
    for wait in (*waits, None):
        try:
            return attempt()
        except (KD3Error, Unreadable):
            raise
        except Exception as problem:
            # Each protocol raises its own.
            if HERE in str(problem):
                raise Unreadable("not allowed", f"it leads to {HERE}; {HOSTS_FLAG} allows it") from None
            if wait is None or not _may_pass(problem):
                raise Unreadable("unreachable", described(problem, url)) from None
            time.sleep(wait)
    raise AssertionError


def _may_pass(problem: Exception) -> bool:
    status = _status(problem)
    if status is not None:
        return status >= 500 or status in PASSING
    return not isinstance(problem, (FileNotFoundError, PermissionError, IsADirectoryError, ValueError, TypeError))


def _status(problem: Exception) -> int | None:
    status = getattr(problem, "status", None) or getattr(getattr(problem, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def described(problem: Exception, url: str) -> str:
    """Describe a URL's error briefly, without secrets."""
    status = _status(problem)
    if status is not None:
        return f"HTTP status {status} {getattr(problem, 'message', '') or ''}".rstrip()[:LONGEST]
    if isinstance(problem, FileNotFoundError):
        return "it does not exist"
    words = f"{type(problem).__name__}: {problem}".removesuffix(": ")
    for secret in secrets_of(url):
        words = words.replace(secret, HIDDEN)
    return without_secrets(words)[:LONGEST]


@dataclass(frozen=True, slots=True)
class Remote:
    """A single remote file."""

    url: str

    def read(self) -> bytes:
        """Return its bytes, after a few attempts; raises Unreadable, or KD3Error where a package is missing."""
        system, path = filesystem(self.url)
        data = patiently(self.url, lambda: _whole(self.url, system, path), IMAGE_WAITS)
        if len(data) > FILE_LIMIT:
            raise too_large()
        return data


def _whole(url: str, system: Any, path: str) -> bytes:
    if not is_http(url):
        return bytes(system.cat_file(path))
    parts: list[bytes] = []
    with _http_stream(system, path) as stream:  # no length is given, and it may be endless
        while sum(map(len, parts)) <= FILE_LIMIT and (part := stream.read(BLOCK)):
            parts.append(part)
    return b"".join(parts)


def _http_stream(system: Any, path: str) -> BinaryIO:
    return cast(BinaryIO, system.open(path, block_size=0, size=1))  # a given size saves a request


def check_readable(url: str) -> None:
    """Check that a file can be read, without reading it.

    Raises:
        Unreadable: it cannot.
        KD3Error: the protocol's package is missing.
    """
    system, path = filesystem(url)
    patiently(url, lambda: _size(url, system, path), ARCHIVE_WAITS)


@contextmanager
def opened_remote(url: str, *, block: int = BLOCK) -> Iterator[BinaryIO]:
    """Open a remote file for random access in blocks; failed requests are repeated.

    Without range requests, the file is downloaded to a temporary one.

    Raises:
        Unreadable: when opened or read, it cannot be reached.
        KD3Error: the protocol's package is missing.
    """
    system, path = filesystem(url)
    size = patiently(url, lambda: _size(url, system, path), ARCHIVE_WAITS)
    if size is not None:
        with io.BufferedReader(_Ranges(url, system, path, size), block) as file:
            yield cast(BinaryIO, file)
        return
    with tempfile.TemporaryFile() as copy:
        patiently(url, lambda: _fetch(system, path, cast(BinaryIO, copy)), ARCHIVE_WAITS)
        yield cast(BinaryIO, copy)


@contextmanager
def streamed_remote(url: str) -> Iterator[BinaryIO]:
    """Open a remote file for sequential reading; raises as `opened_remote`."""
    system, path = filesystem(url)
    size = patiently(url, lambda: _size(url, system, path), ARCHIVE_WAITS)
    if size is not None:
        with io.BufferedReader(_Ranges(url, system, path, size), STREAM_BLOCK) as file:
            yield cast(BinaryIO, file)
    else:
        with patiently(url, lambda: _http_stream(system, path), ARCHIVE_WAITS) as stream:
            yield cast(BinaryIO, io.BufferedReader(_InOrder(url, stream), BLOCK))


def _fetch(system: Any, path: str, copy: BinaryIO) -> None:
    copy.seek(0)
    copy.truncate()
    with _http_stream(system, path) as stream:
        while part := stream.read(BLOCK):
            if copy.tell() > FETCH_LIMIT:
                raise Unreadable("file too large", f"more than {FETCH_LIMIT >> 30} GiB, which have to be fetched whole")
            copy.write(part)
    copy.seek(0)


def _size(url: str, system: Any, path: str) -> int | None:
    """Return a file's size, None if range requests are not supported."""
    if not is_http(url):
        info = system.info(path)
        if info["type"] == "directory":
            raise IsADirectoryError(path)
        size: int | None = info["size"]
        return size
    from fsspec.asyn import sync

    asked: int | None = sync(system.loop, _size_of_web_file, system, path)
    return asked


async def _size_of_web_file(system: Any, path: str) -> int | None:
    # Many servers do not announce range support, and a signed URL allows only GET: request one byte.
    session = await system.set_session()
    options = {**system.kwargs, "headers": {**system.kwargs.get("headers", {}), "Range": "bytes=0-0"}}
    async with session.get(system.encode_url(path), **options) as answer:
        if answer.status == 416:  # there is no first byte
            return 0
        if answer.status == 404:
            raise FileNotFoundError(path)
        answer.raise_for_status()
        total = answer.headers.get("Content-Range", "").rpartition("/")[2]
        return int(total) if answer.status == 206 and total.isdigit() else None


class _InOrder(io.RawIOBase):
    """A remote file read from its beginning; what fails is the network, not the archive."""

    def __init__(self, url: str, stream: BinaryIO) -> None:
        self._url, self._stream = url, stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except Exception as problem:
            # A server that breaks off, or is silent for too long.
            raise Unreadable("unreachable", described(problem, self._url)) from None
        buffer[: len(data)] = data
        return len(data)


class _Ranges(io.RawIOBase):
    """A remote file as Python's readers want one."""

    def __init__(self, url: str, system: Any, path: str, size: int) -> None:
        self._url, self._system, self._path, self._size = url, system, path, size
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence])
        return self._place

    def readinto(self, buffer: Any) -> int:
        start, end = self._place, min(self._place + min(len(buffer), ANSWER_LIMIT), self._size)
        if end <= start:
            return 0
        data = patiently(self._url, lambda: self._system.cat_file(self._path, start=start, end=end), ARCHIVE_WAITS)
        if len(data) != end - start:
            raise Unreadable("unreachable", f"{end - start:,} bytes were asked for, {len(data):,} came")
        buffer[: len(data)] = data
        self._place = end
        return len(data)
