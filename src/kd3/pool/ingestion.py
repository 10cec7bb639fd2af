"""A pool filled from a crawl: after any interruption, it can be run again and continues."""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import Any

from kd3.config.pool_commands import IngestConfig
from kd3.config.records import Preparation
from kd3.config.settings import build
from kd3.pool.decode import DecodeSettings, Rejected
from kd3.pool.decoding import Outcome, decode_records
from kd3.pool.image_pool import ImagePool
from kd3.pool.ingest_state import DATABASE, IngestState, Place, RemainingRecords, begun_with
from kd3.pool.leaks import KnownImages, read_known
from kd3.pool.pool_files import (
    INDEX,
    NAME,
    PART_BYTES,
    PARTS,
    Counts,
    KeptOut,
    content_hash,
    read_manifest,
    write_manifest,
)
from kd3.runtime import console
from kd3.runtime.console import Progress
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import exclusive
from kd3.sources.containers import Limits
from kd3.sources.files import shown
from kd3.sources.finding import check_given, check_part, counts
from kd3.sources.locations import expand
from kd3.sources.record import SIDECAR
from kd3.sources.trust import is_remote, with_permissions

PATIENCE = 2.0  # seconds


@contextmanager
def count_in_background(
    sources: Sequence[str], limit: int | None, bar: Progress, part: tuple[int, int] | None = None
) -> Iterator[None]:
    """Set the bar's total once the files have been counted.

    Counting a compressed tar would need unpacking; with one among the sources the total stays unknown.
    """
    if console.is_quiet():
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(target=_count, args=(sources, part, limit, bar, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(1.0)  # it may be waiting for a silent server


def _count(
    sources: Sequence[str], part: tuple[int, int] | None, limit: int | None, bar: Progress, stop: threading.Event
) -> None:
    total = 0
    if stop.wait(PATIENCE):  # short work needs no estimate
        return
    try:
        for count in counts(sources, part, given_up=stop.is_set):
            if stop.is_set() or count is None:
                return
            total += count
    except Exception:
        return  # errors are reported where the files are read
    if not stop.is_set():
        bar.set_total(min(total, limit or total))


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


COMMIT_SECONDS = 2.0
COMMIT_FILES = 16_384
FILES_A_TICK = 64  # files between updates: drawing the bar costs as much as a small image


class NothingUsableError(KD3Error):
    """No file of a crawl is an image."""


@console.quietable
def ingest(
    sources: str | Path | Sequence[str | Path], out: str | Path, *, image_size: int, **settings: Any
) -> ImagePool:
    """Make a pool of a crawl and return it.

    `sources` are paths and URLs: folders, archives, tables, arrays, lists of paths; `docs/sources.md` tells of each.
    `settings` are `quiet=True` and those of `kd3 ingest --help`: fit, min_side, max_pixels, dedup, keep_out, shard,
    workers, limit, trust_entries, private_hosts. Excluded images are listed in the pool: files that cannot be used in
    `rejected.csv`, exact duplicates in `duplicates.csv`, near ones in `near-duplicates.csv`, copies of test images in
    `kept-out.csv`. An interrupted ingest continues when called again with the same sources and settings; a finished one
    is returned unchanged.

    Raises:
        KD3Error: a source is missing, the output belongs to something else or to other settings, or
            no file can be used; nothing is left behind then.
    """
    listed = [str(s) for s in ([sources] if isinstance(sources, (str, Path)) else sources)]
    values = {"sources": listed, "out": str(out), "image_size": image_size, **settings}
    return ingest_with(build(IngestConfig, values, where="kd3.ingest"))


@with_permissions
def ingest_with(config: IngestConfig, *, part_bytes: int = PART_BYTES) -> ImagePool:
    """Make a pool as the settings say; see `ingest`."""
    folder = Path(config.out)
    try:
        if (folder / NAME).is_file():
            return _finished(folder, config)  # even if the crawl is gone
        # Errors are reported before anything is created.
        found = expand(config.sources)
        known = {source: expand([source]) for source in config.keep_out}
        check_place(folder, [*found, *chain.from_iterable(known.values())])
        check_given(config.sources, found)
        for source, files in known.items():
            check_given([source], files)
        check_part(found, config.part)
        keep_out = [
            read_known(source, image_size=config.image_size, fit=config.fit, workers=config.workers, found=files)
            for source, files in known.items()
        ]
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        if made:
            _check_again(folder, config, made)
        with exclusive(folder / LOCK, what=f"pool {folder}"):
            if not (folder / NAME).is_file():  # another process may have finished it meanwhile
                _fill(folder, config, found, keep_out, made, part_bytes)
    except (OSError, sqlite3.OperationalError) as problem:
        # Unreadable crawl files are rejections by now: this error concerns the output.
        raise KD3Error(
            f"cannot write pool {folder}: {problem}; once that is mended, the same command goes on from here"
        ) from problem
    except sqlite3.DatabaseError as problem:
        raise KD3Error(f"{folder / DATABASE} is damaged ({problem}); remove {folder} and begin again") from problem
    (folder / LOCK).unlink(missing_ok=True)
    return ImagePool.open(folder)


def _check_again(folder: Path, config: IngestConfig, made: list[Path]) -> None:
    """Refuse a new folder that one of the sources matches, such as `crawl/*`."""
    new = os.path.realpath(made[-1])
    try:
        here = [source for source in config.sources if not is_remote(source) and _may_match(source, new)]
        check_place(folder, expand(here))
    except KD3Error:
        remove_pool(folder, made)
        raise


def _may_match(source: str, new: str) -> bool:
    """Return whether a source has a star behind the folder that holds `new`."""
    first = re.split(r"[*?\[{]", source.removeprefix("file://"), maxsplit=1)
    return len(first) > 1 and new.startswith(os.path.join(os.path.realpath(os.path.dirname(first[0])), ""))


def _finished(folder: Path, config: IngestConfig) -> ImagePool:
    check_settings(folder, _as_now(read_manifest(folder).settings), ingest_request(config))
    # A kill right after the manifest was written leaves these.
    for name in (DATABASE, LOCK):
        (folder / name).unlink(missing_ok=True)
    pool = ImagePool.open(folder)
    console.info(f"pool {folder} is finished; there is nothing to do")
    return pool


def _fill(
    folder: Path,
    config: IngestConfig,
    found: Sequence[str],
    keep_out: Sequence[KnownImages],
    made: list[Path],
    part_bytes: int,
) -> None:
    begun = begun_with(folder)
    check_settings(folder, _as_now(begun or {}), ingest_request(config))
    state = IngestState(
        folder, config.image_size, part_bytes=part_bytes, keep_out=keep_out, near=config.dedup == "near"
    )
    try:
        if begun is None:
            state.begin(ingest_request(config))
        elif state.files:
            console.info(f"pool {folder}: continuing after {state.files:,} files")
        _consume(state, config, found, again=begun is not None)
        if state.images == 0:
            message = _nothing_usable(state, config)
            state.close()
            remove_pool(folder, made)
            raise NothingUsableError(message)
        _finish(state, folder, config, keep_out)
    finally:
        state.close()
    (folder / DATABASE).unlink(missing_ok=True)
    for leftover in folder.glob(".*.tmp"):  # of a run that was killed while it wrote them
        leftover.unlink()


def ingest_request(config: IngestConfig) -> dict[str, Any]:
    """Return the settings that must be equal for an ingest to continue; others, such as workers, may change."""
    values = config.model_dump(
        mode="json", exclude={"sources", "keep_out", "out", "workers", "max_seconds", "max_unpacked", "engine"}
    )
    for name in ("sources", "keep_out"):
        values[name] = [
            shown(source if is_remote(source) else str(Path(source).absolute())) for source in getattr(config, name)
        ]
    return values


def _as_now(request: dict[str, Any]) -> dict[str, Any]:
    """Convert a request of an earlier kd3, which kept more of a URL, to the present form."""
    now = dict(request)
    for name in ("sources", "keep_out"):
        if name in now:
            now[name] = list(map(shown, now[name]))
    return now


def _consume(state: IngestState, config: IngestConfig, found: Sequence[str], *, again: bool) -> None:
    """Decode and store the remaining records of `found`; `again`: an earlier process was interrupted."""
    settings = DecodeSettings(config.image_size, config.fit, config.min_side, config.max_pixels, config.max_seconds)
    remaining = RemainingRecords(
        found, state.place or Place(), config.part, Limits(config.max_seconds, config.max_unpacked)
    )
    before_it = state.files if state.place else 0  # files that are not drawn again
    limit = None if config.limit is None else config.limit - before_it
    files = islice(remaining, state.files - before_it, limit)
    committed = started = time.monotonic()
    before = state.seconds
    with (
        console.progress("ingest", None, "files", done=state.files) as bar,
        count_in_background(found, config.limit, bar, config.part),
        closing(decode_records(files, settings, workers=config.workers, wary=again)) as outcomes,
    ):
        counted = state.files
        for outcome in outcomes:
            _take(outcome, state)
            if state.files - counted >= FILES_A_TICK:
                bar.advance(state.files - counted)
                counted = state.files
            if state.files % COMMIT_FILES == 0 or time.monotonic() - committed > COMMIT_SECONDS:
                committed = time.monotonic()
                state.seconds = before + committed - started
                state.place = remaining.place(state.files - before_it)
                state.commit()
        bar.advance(state.files - counted)
    state.seconds = before + time.monotonic() - started
    state.place = remaining.place(state.files - before_it)
    state.commit()


def _take(outcome: Outcome, state: IngestState) -> None:
    result = outcome.result
    if not isinstance(result, Rejected):
        state.add(outcome.record, result)
    elif result.reason == SIDECAR:
        state.skipped += 1
    else:
        state.reject(outcome.record, result.reason, result.detail)
    state.files += 1


def _finish(state: IngestState, folder: Path, config: IngestConfig, keep_out: Sequence[KnownImages]) -> None:
    duplicates, near_duplicates, kept_out = state.left_out()
    state.write_index(folder / INDEX)
    state.write_lists(folder)
    write_manifest(
        folder,
        preparation=Preparation(config.image_size, config.fit),
        content_hash=content_hash(config.image_size, state.digests()),
        counts=Counts(
            found=state.files - state.skipped,
            kept=state.images,
            duplicates=duplicates,
            near_duplicates=near_duplicates,
            kept_out=kept_out,
            rejected=state.rejected_counts(),
            skipped=state.skipped,
        ),
        parts=state.parts(),
        digests=state.part_digests(),
        sources=[shown(source) for source in config.sources],
        settings=ingest_request(config),
        kept_out=[
            KeptOut(source=shown(source), images=len(known), content=known.fingerprint())
            for source, known in zip(config.keep_out, keep_out, strict=True)
        ],
        seconds=state.seconds,
    )


def _nothing_usable(state: IngestState, config: IngestConfig) -> str:
    rejected = state.rejected_counts()
    where = ", ".join(map(shown, config.sources))
    reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
    kept_out = state.left_out()[2]
    if kept_out:
        of = ", ".join(map(shown, config.keep_out))
        why = f"{kept_out:,} are images of --keep-out {of}, or near copies of such"
        return f"no image of {where} is left: {why}" + (f"; {reasons}" if rejected else "")
    if not rejected:
        return f"{where} holds no file that could be an image"
    examples = ", ".join(
        f"{key} ({reason}: {detail})" if detail else f"{key} ({reason})"
        for key, reason, detail in state.first_rejected(3)
    )
    return f"none of the {sum(rejected.values())} files in {where} can be used: {reasons}; such as {examples}"
