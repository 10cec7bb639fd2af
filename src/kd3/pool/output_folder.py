"""Output folder of a pool: ownership checks and removal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kd3.errors import KD3Error
from kd3.pool.allowed import is_remote
from kd3.pool.ingest_state import DATABASE
from kd3.pool.manifest import NAME
from kd3.pool.packed import PARTS

LOCK = ".lock"


def check_place(folder: Path, sources: Sequence[str], *, ours: Sequence[str] = (NAME, DATABASE)) -> None:
    """Refuse a place for a pool that belongs to something else; nothing is written.

    One of the files `ours` marks a folder as a finished or unfinished pool.

    Raises:
        KD3Error: it is a file, it holds other things, or it lies inside a source.
    """
    if folder.exists() and not folder.is_dir():
        raise KD3Error(f"{folder} is a file; --out must be a folder")
    if folder.is_dir():
        present = {entry.name for entry in folder.iterdir()}
        if present - {LOCK} and present.isdisjoint(ours):
            raise KD3Error(f"{folder} is not empty and holds no pool; choose another --out")
    for source in (Path(source) for source in sources if not is_remote(source)):
        if source.is_dir() and folder.resolve().is_relative_to(source.resolve()):
            raise KD3Error(f"{folder} lies in the source {source}, which it would change; choose another --out")


def check_settings(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to continue a pool with other settings.

    Raises:
        KD3Error: the pool was made in another way; or names the first that differs, and both values.
    """
    if before and ("derived_from" in before) != ("derived_from" in now):
        was = "derived from another pool" if "derived_from" in before else "made from a crawl"
        raise KD3Error(f"pool {folder} was {was}; choose another --out")
    for name, value in now.items():
        if name in before and before[name] != value:
            raise KD3Error(
                f"pool {folder} was begun with {name} = {before[name]!r}, not {value!r}; "
                f"choose another --out or the same settings"
            )


def remove_pool(folder: Path, made: Sequence[Path]) -> None:
    """Remove what an ingest wrote, and the folders that it made (innermost first) if they are empty then."""
    for pattern in (f"{DATABASE}*", PARTS, ".*.tmp", LOCK):
        for path in folder.glob(pattern):
            path.unlink()
    with suppress(OSError):
        for place in made:
            place.rmdir()
