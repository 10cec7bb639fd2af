"""Fill a pool from a crawl: whatever happens, it can be run again and goes on."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any

import kd3
from kd3 import console
from kd3.config.commands import IngestConfig
from kd3.config.settings import build
from kd3.errors import KD3Error
from kd3.pool.counting import count_in_background
from kd3.pool.decode import DecodeSettings, Rejected
from kd3.pool.decoding import decode_records
from kd3.pool.image_pool import DUPLICATES, INDEX, REJECTED, ImagePool
from kd3.pool.ingest_state import DATABASE, PART_BYTES, IngestState
from kd3.pool.manifest import FORMAT, NAME, VERSION, Counts, Manifest, content_hash, read_manifest
from kd3.pool.record import SIDECAR
from kd3.pool.sources import expand, records
from kd3.storage.atomic import write_json
from kd3.storage.lock import exclusive

COMMIT_SECONDS = 2.0
COMMIT_FILES = 4096
LOCK = ".lock"


def ingest(
    sources: str | Path | Sequence[str | Path], out: str | Path, *, image_size: int, **settings: Any
) -> ImagePool:
    """Make a pool of a crawl and return it.

    `settings` are those of `kd3 ingest --help`: fit, min_side, max_pixels, workers, limit. Files
    that cannot be used are listed in the pool's `rejected.csv`, exact duplicates in
    `duplicates.csv`. An interrupted ingest goes on when called again with the same sources
    and settings; a finished one is returned as it is.

    Raises:
        KD3Error: a source is missing, the output belongs to something else or to other settings, or
            no file can be used; nothing is left behind then.
    """
    listed = [str(s) for s in ([sources] if isinstance(sources, (str, Path)) else sources)]
    values = {"sources": listed, "out": str(out), "image_size": image_size, **settings}
    return ingest_with(build(IngestConfig, values, where="kd3.ingest"))


def ingest_with(config: IngestConfig, *, part_bytes: int = PART_BYTES) -> ImagePool:
    """Make a pool as the settings say; see `ingest`."""
    folder = Path(config.out)
    expand(config.sources)  # a missing source is told before anything is made
    fresh = _check_output(folder, config)
    if (folder / NAME).is_file():
        console.say(f"pool {folder} is finished; there is nothing to do")
        return ImagePool.open(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / LOCK, what=f"pool {folder}"):
        state = IngestState(folder, config.image_size, part_bytes=part_bytes)
        try:
            if state.request() is None:
                state.begin(_request(config))
            elif state.files:
                console.say(f"pool {folder}: going on after {state.files:,} files")
            _consume(state, config)
            _finish(state, folder, config)
        except KD3Error:
            state.close()
            if fresh:
                shutil.rmtree(folder)
            raise
        finally:
            state.close()
        (folder / DATABASE).unlink()
    (folder / LOCK).unlink(missing_ok=True)
    return ImagePool.open(folder)


def _request(config: IngestConfig) -> dict[str, Any]:
    """Return what must be equal for an ingest to go on; the number of workers may change."""
    values = config.model_dump(mode="json", exclude={"out", "workers"})
    values["sources"] = [str(Path(source).absolute()) for source in config.sources]
    return values


def _check_output(folder: Path, config: IngestConfig) -> bool:
    """Refuse a folder that is not ours or was begun with other settings; say whether it is new."""
    if not folder.exists():
        return True
    if not folder.is_dir():
        raise KD3Error(f"{folder} is a file; --out must be a folder")
    ours = {entry.name for entry in folder.iterdir()}
    if not ours - {LOCK}:
        return True
    if NAME in ours:
        before = read_manifest(folder).settings
    elif DATABASE in ours:
        with exclusive(folder / LOCK, what=f"pool {folder}"):
            state = IngestState(folder, config.image_size)
            before = state.request() or _request(config)
            state.close()
    else:
        raise KD3Error(f"{folder} is not empty and holds no pool; choose another --out")
    for name, value in _request(config).items():
        if before.get(name) != value:
            raise KD3Error(
                f"pool {folder} was begun with {name} = {before.get(name)!r}, not {value!r}; "
                f"choose another --out or the same settings"
            )
    return False


def _consume(state: IngestState, config: IngestConfig) -> None:
    settings = DecodeSettings(config.image_size, config.fit, config.min_side, config.max_pixels)
    files = islice(records(config.sources), state.files, config.limit)
    committed = started = time.monotonic()
    before = state.seconds
    with (
        console.progress("ingest", None, "files", done=state.files) as bar,
        count_in_background(config.sources, config.limit, bar),
    ):
        for outcome in decode_records(files, settings, workers=config.workers):
            result = outcome.result
            if not isinstance(result, Rejected):
                state.add(outcome.record, result)
            elif result.reason == SIDECAR:
                state.skipped += 1
            else:
                state.reject(outcome.record, result.reason, result.detail)
            state.files += 1
            bar.advance(1)
            if state.files % COMMIT_FILES == 0 or time.monotonic() - committed > COMMIT_SECONDS:
                committed = time.monotonic()
                state.seconds = before + committed - started
                state.commit()
    state.seconds = before + time.monotonic() - started
    state.commit()


def _finish(state: IngestState, folder: Path, config: IngestConfig) -> None:
    rejected = state.rejected_counts()
    if state.images == 0:
        raise KD3Error(_nothing_usable(state, config, rejected))
    state.write_index(folder / INDEX)
    state.write_lists(folder / REJECTED, folder / DUPLICATES)
    manifest = Manifest(
        format=FORMAT,
        version=VERSION,
        image_size=config.image_size,
        images=state.images,
        content_hash=content_hash(config.image_size, state.digests()),
        counts=Counts(
            found=state.files - state.skipped,
            kept=state.images,
            duplicates=state.duplicates(),
            rejected=rejected,
            skipped=state.skipped,
        ),
        parts=state.parts(),
        sources=config.sources,
        settings=_request(config),
        kd3=kd3.__version__,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=round(state.seconds, 3),
    )
    write_json(folder / NAME, manifest.to_dict())


def _nothing_usable(state: IngestState, config: IngestConfig, rejected: dict[str, int]) -> str:
    where = ", ".join(config.sources)
    if not rejected:
        return f"{where} holds no file that could be an image"
    reasons = ", ".join(f"{count} {reason}" for reason, count in rejected.items())
    examples = ", ".join(f"{key} ({reason})" for key, reason in state.first_rejected(3))
    return f"none of the {sum(rejected.values())} files in {where} can be used: {reasons}; such as {examples}"
