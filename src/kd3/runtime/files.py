"""Files and folders that are whole or absent, one process at a time in a folder, and a full disk in words."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from kd3.runtime import console
from kd3.runtime.errors import KD3Error

FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)  # of a place that only the user can change
NOTHING_LEFT = 1 << 20  # bytes: a filesystem with less counts as full


@contextmanager
def full_disk_as_error(path: Path, *, kept: str) -> Iterator[None]:
    """Convert out-of-space errors under `path` to one sentence, which ends with `kept`.

    Libraries raise their own errors (torch: "unexpected pos"), so the free space is checked, too.

    Raises:
        KD3Error: the disk is full.
    """
    try:
        yield
    except KD3Error:
        raise
    except Exception as problem:
        if not is_full(problem, path):
            raise
        raise KD3Error(f"no space is left on the disk of {path}; {kept}") from problem


def no_space(path: Path) -> OSError:
    """Return the system's error for a full disk."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def is_full(problem: BaseException, path: Path) -> bool:
    """Return whether an error came from a full disk; for unspecific errors, whether the disk is full now."""
    if isinstance(problem, OSError) and problem.errno is not None:
        return problem.errno in FULL
    if "No space left" in str(problem) or "disk is full" in str(problem):
        return True
    if not isinstance(problem, RuntimeError) or not hasattr(os, "statvfs"):
        return False
    while not path.exists():
        path = path.parent
    filesystem = os.statvfs(path)
    return filesystem.f_bavail * filesystem.f_frsize < NOTHING_LEFT


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; on success it is synced and renamed to `path`.

    On an exception the temporary file is removed and `path` is unchanged.

    Raises:
        OSError: also for a full disk that the writer reports with its own error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # in a folder of somebody else's it may be a link to another place
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except Exception as problem:
        if not isinstance(problem, OSError) and is_full(problem, path.parent):  # check before the space is freed
            raise no_space(path) from problem
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut (a no-op where folders cannot be opened)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically (UTF-8)."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file atomically, indented and with a final newline."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


LARGEST = 64 << 20  # bytes; a student of a million classes, or a pool of a million sources, has less


def read_json(path: Path) -> Any:
    """Return the value in a JSON file.

    Raises:
        KD3Error: it is missing, no JSON, no file, or too large.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")  # reading a pipe or a device would never end
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has more than {LARGEST >> 20} MiB")
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise KD3Error(f"{path} cannot be read: it is nested too deep") from None
    except (OSError, ValueError) as problem:
        raise KD3Error(f"{path} cannot be read: {problem}") from None


def read_versioned(path: Path, *, format_name: str, version: int) -> dict[str, Any]:
    """Return the mapping in a JSON file whose `format` and `version` are ours.

    Raises:
        KD3Error: it cannot be read, is of another format, or of a version newer than `version`.
    """
    values = read_json(path)
    if not isinstance(values, dict) or values.get("format") != format_name:
        raise KD3Error(f"{path} is not of the format {format_name}")
    found = values.get("version")
    if not isinstance(found, int) or isinstance(found, bool):
        raise KD3Error(f"{path} is damaged: its version is {found!r}")
    if found > version:
        raise KD3Error(f"{path} has format version {found}; this kd3 reads up to {version}: upgrade kd3")
    return values


GZIP, BZIP2, XZ, ZSTANDARD = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"
COMPRESSED = (GZIP, BZIP2, XZ, ZSTANDARD)
ZIP = (b"PK\3\4", b"PK\5\6")
TAR, TAR_PLACE = b"ustar", 257
LFS = b"version https://git-lfs.github.com/spec/"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
PICKLE = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
FIRST = 512  # bytes to recognise a file


def archive_by_contents(first: bytes) -> str | None:
    """Return "tar" (also a compressed one) or "zip" by a file's first bytes, otherwise None."""
    if first.startswith(ZIP):
        return "zip"
    is_tar = first.startswith(COMPRESSED) or first[TAR_PLACE : TAR_PLACE + len(TAR)] == TAR
    return "tar" if is_tar else None


def stand_in(first: bytes) -> str | None:
    """Return a description of a stand-in for a file; None if it may be the file itself."""
    if first.startswith(LFS):
        return "a Git LFS pointer, which stands for the file: git lfs pull fetches it"
    return None


def what_it_is(data: bytes) -> str:
    """Describe a file that is not the expected image; empty if unknown."""
    if (found := stand_in(data)) is not None:
        return found
    if archive_by_contents(data[:FIRST]) is not None:
        return "an archive inside another, or under another name, which is not opened: unpack it"
    if data.startswith(PICKLE):
        return "a pickle, perhaps a batch of CIFAR, which is not opened inside an archive: unpack that"
    if data.startswith(UTF16):
        return "text in UTF-16"
    return ""


def refuse_links(paths: Iterable[Path]) -> None:
    """Refuse links among the files of a folder that anybody may have made: they may lead anywhere.

    Raises:
        KD3Error: one is a link.
    """
    for path in paths:
        if path.is_symlink():
            raise KD3Error(
                f"{path} is a link, which may lead anywhere; put what it leads to in its place if you trust it "
                f"(`cp -rL` copies a folder that way)"
            )


@contextmanager
def exclusive(path: Path, *, what: str, can_go_elsewhere: bool = True) -> Iterator[None]:
    """Hold a lock file; the system releases it at any end of the process.

    `can_go_elsewhere`: the command has --out.

    Raises:
        KD3Error: another process holds it, or it is a link.
    """
    refuse_links([path])
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        instead = " or choose another --out" if can_go_elsewhere else ""
        raise KD3Error(f"another process is at work on {what}; wait for it{instead}") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def waiting(path: Path, *, what: str) -> Iterator[None]:
    """Wait for a lock file and hold it.

    Raises:
        OSError: the lock file cannot be made.
        KD3Error: it is a link.
    """
    refuse_links([path])
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        console.info(f"another process is at work on {what}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


LOCK = ".lock"


def is_vacant(path: Path) -> bool:
    """Return whether a folder is absent or empty.

    Raises:
        KD3Error: it is a file, or cannot be read.
    """
    try:
        if path.exists() and not path.is_dir():
            raise KD3Error(f"{path} is a file; --out must be a folder")
        return not path.exists() or not any(path.iterdir())
    except OSError as problem:
        raise KD3Error(f"--out {path} cannot be used: {problem.strerror}") from None


def missing_parents(path: Path) -> list[Path]:
    """Return the parent folders of a path that do not exist yet, the innermost first."""
    return [place for place in path.resolve().parents if not place.exists()]


def remove_vacant(folders: Iterable[Path]) -> None:
    """Remove folders, up to the first one that something else has come into."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


@contextmanager
def whole_folder(path: Path, *, what: str) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it is renamed to `path`, which must be vacant.

    On an exception it is removed, with any parent folders made for it. A killed process leaves `.NAME.unfinished`,
    which the next one for the same `path` clears and uses.

    Raises:
        KD3Error: the place cannot be written to, is no longer vacant, or another process is working on it.
    """
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.unfinished")
    made = missing_parents(path)
    lock = temporary / LOCK
    try:
        if temporary.is_symlink():
            temporary.unlink()  # what it leads to is not ours to clear
        temporary.mkdir(parents=True, exist_ok=True)
        with exclusive(lock, what=what):
            try:
                _clear(temporary)
                yield temporary
                _sync(temporary)
                lock.unlink(missing_ok=True)
                _take_place(temporary, path)
            except BaseException as problem:
                full = is_full(problem, temporary)  # check before the space is freed
                shutil.rmtree(temporary, ignore_errors=True)
                remove_vacant(made)
                if full:
                    raise no_space(path) from problem
                raise
    except OSError as problem:
        raise KD3Error(f"{what} cannot be written: {problem.strerror or problem}") from problem


def _take_place(temporary: Path, path: Path) -> None:
    if not is_vacant(path):
        raise KD3Error(f"something else was written to {path} meanwhile; choose another --out")
    with suppress(FileNotFoundError):
        path.rmdir()
    temporary.rename(path)
    sync_folder(path.parent)


def _clear(folder: Path) -> None:
    """Remove remnants of a killed process."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()


def _sync(folder: Path) -> None:
    for place, _, files in os.walk(folder):
        for name in files:
            with open(os.path.join(place, name), "rb") as handle:
                os.fsync(handle.fileno())
        sync_folder(Path(place))
