"""Published files: location, verification and download."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from kd3 import console
from kd3.config.datasets import DataSet, Published
from kd3.errors import KD3Error
from kd3.pool.record import Unreadable
from kd3.pool.remote import BLOCK, opened_remote

UNCHECKED = "--no-check takes files as they are"
PART = ".part"  # suffix of an incomplete download


def found(dataset: DataSet, place: Path) -> list[Path]:
    """Return the published archives at a place: the file itself, or those in the folder; none if it is unpacked.

    Raises:
        KD3Error: there are none, or some archives are missing.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise KD3Error(f"{place} does not exist; put {_names(dataset)} there, or add --download")
    there = [place / file.name for file in dataset.files if (place / file.name).is_file()]
    if there and len(there) < len(dataset.files):
        missing = [file.name for file in dataset.files if place / file.name not in there]
        raise KD3Error(f"{place} has no {', '.join(missing)}; put it there, or add --download")
    return there


def check(dataset: DataSet, files: list[Path], place: Path) -> None:
    """Compare files with the published checksums, if known; in an unpacked folder, compare the batches.

    Raises:
        KD3Error: one differs.
    """
    known = {file.name: file.md5 for file in dataset.files if file.md5 is not None}
    only = next(iter(known.values())) if len(dataset.files) == len(known) == 1 else None
    if files:
        expected = {path: known.get(path.name, only) for path in files}
    else:
        expected = {path: md5 for name, md5 in dataset.unpacked.items() for path in place.rglob(name) if path.is_file()}
    for path, md5 in expected.items():
        if md5 is None:
            console.say(
                f"no checksum of {path.name} is published that kd3 knows; its contents are checked as they come"
            )
        elif (own := md5_of(path)) != md5:
            raise KD3Error(
                f"{path} is not the published file: its MD5 is {own}, not {md5}; it is damaged, half, or another one "
                f"({UNCHECKED})"
            )


def fetch(file: Published, folder: Path) -> None:
    """Download a published file into a folder if it is missing; an interrupted download is resumed.

    The file gets its name once it is complete and its checksum correct.

    Raises:
        KD3Error: it cannot be reached, or differs from the published file.
        OSError: it cannot be written.
    """
    path, part = folder / file.name, folder / (file.name + PART)
    if path.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with opened_remote(file.url) as source, part.open("ab") as target:
            size = source.seek(0, os.SEEK_END)
            done = min(target.tell(), size)
            target.truncate(done)
            source.seek(done)
            with console.progress("fetching", size, "bytes", done=done) as bar:
                while data := source.read(BLOCK):
                    target.write(data)
                    bar.advance(len(data), file.name)
            os.fsync(target.fileno())
    except Unreadable as problem:
        raise KD3Error(
            f"{file.url} cannot be fetched: {problem.detail or problem.reason}; the same command goes on from what is "
            f"there, or put {file.name} into {folder} yourself"
        ) from None
    if file.md5 is not None and (own := md5_of(part)) != file.md5:
        part.unlink()
        raise KD3Error(f"{file.url} is not the published file: its MD5 is {own}, not {file.md5}; it was removed")
    part.replace(path)


def md5_of(path: Path) -> str:
    """Return the MD5 of a file, in hex: the published checksum, which detects damage, not forgery."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as handle:
        while data := handle.read(BLOCK):
            digest.update(data)
    return digest.hexdigest()


def _names(dataset: DataSet) -> str:
    return ", ".join(file.name for file in dataset.files)
