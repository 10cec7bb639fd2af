"""Atomic writing of folders: complete or absent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kd3.errors import KD3Error
from kd3.storage.atomic import sync_folder
from kd3.storage.full_disk import is_full, no_space
from kd3.storage.lock import exclusive

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
    made = [place for place in path.parents if not place.exists()]
    lock = temporary / LOCK
    try:
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
                with suppress(OSError):
                    for place in made:
                        place.rmdir()
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
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()


def _sync(folder: Path) -> None:
    for place, _, files in os.walk(folder):
        for name in files:
            with open(os.path.join(place, name), "rb") as handle:
                os.fsync(handle.fileno())
        sync_folder(Path(place))
