"""One pool made of several, such as the parts that machines, or a Ray cluster's workers, made of one crawl."""

from __future__ import annotations

import csv
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from kd3.config.pool_commands import IngestConfig
from kd3.pool.checks import watched
from kd3.pool.decode import Decoded, pixel_digest
from kd3.pool.image_pool import ImagePool
from kd3.pool.ingest_state import DATABASE, IngestState, begun_with
from kd3.pool.ingestion import LOCK, NothingUsableError, check_place, check_settings, ingest_request, remove_pool
from kd3.pool.pool_files import (
    COLUMNS,
    INDEX,
    LEFT_OUT,
    NAME,
    NEAR_DUPLICATES,
    PART_BYTES,
    Counts,
    content_hash,
    read_manifest,
    sha256_from,
    write_manifest,
)
from kd3.runtime import console
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import exclusive, replacing
from kd3.runtime.ray_tasks import Done, Piece, cores, do_all, ray_cluster
from kd3.sources.record import InMemory, Record

READ_BYTES = 32 << 20
SAME_IN_ALL = ("fit", "min_side", "max_pixels", "dedup")  # settings of an ingest that determine the images


def merge_pools(
    pools: Sequence[ImagePool | str | Path], out: str | Path, *, ingest: dict[str, Any] | None = None
) -> ImagePool:
    """Concatenate pools into a new one, and return it.

    Of identical files one stays; of near copies the first, if the pools were made with that setting. The
    parts that `kd3 ingest --shard 1/N` to `N/N` make, merged in this order, give the content hash of an ingest of the
    whole. A killed merge starts again; a finished one is returned unchanged. `ingest` holds the parts' settings for the
    manifest.

    Raises:
        KD3Error: a pool cannot be read, they do not belong together, or the output belongs to something else.
    """
    opened = [pool if isinstance(pool, ImagePool) else ImagePool.open(pool) for pool in pools]
    _check_together(opened)
    folder = Path(out)
    request: dict[str, Any] = {"merged": [pool.identity for pool in opened]}
    request |= {} if ingest is None else {"ingest": ingest}
    if (folder / NAME).is_file():
        _check_same(folder, read_manifest(folder).settings, request)
        console.info(f"pool {folder} is finished; there is nothing to do")
        return ImagePool.open(folder)
    check_place(folder, [str(pool.path) for pool in opened])
    try:
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / LOCK, what=f"pool {folder}"):
            if (folder / NAME).is_file():  # another process has finished it meanwhile
                _check_same(folder, read_manifest(folder).settings, request)
            else:
                _begin(folder, request)
                try:
                    _fill(folder, opened, request)
                except KD3Error:
                    remove_pool(folder, made)
                    raise
    except OSError as problem:
        raise KD3Error(f"cannot write pool {folder}: {problem}") from problem
    (folder / LOCK).unlink(missing_ok=True)
    return ImagePool.open(folder)


def _begin(folder: Path, request: dict[str, Any]) -> None:
    """Remove what a killed merge has left."""
    if (begun := begun_with(folder)) is not None:
        _check_same(folder, begun, request)
        remove_pool(folder, [])


def _check_same(folder: Path, before: dict[str, Any], request: dict[str, Any]) -> None:
    if "merged" not in before:
        raise KD3Error(f"pool {folder} was not made by a merge; choose another --out")
    check_settings(folder, before, request)


def _check_together(pools: Sequence[ImagePool]) -> None:
    if len(pools) < 2:
        raise KD3Error("a merge takes at least two pools")
    first = pools[0]
    for pool in pools:
        if pool.path is None:
            raise KD3Error("a pool in memory has no index to be merged by")
    for pool in pools[1:]:
        if pool.image_size != first.image_size:
            raise KD3Error(
                f"pool {pool.path} has images of {pool.image_size} pixels, which cannot be merged with the "
                f"{first.image_size} of {first.path}"
            )
    for name in SAME_IN_ALL:
        values = {str(pool.path): _made_with(pool)[name] for pool in pools if name in _made_with(pool)}
        for path, value in values.items():
            if value != (of_first := next(iter(values.values()))):
                raise KD3Error(
                    f"pool {path} was made with {name} = {value!r} and {next(iter(values))} with {of_first!r}; merge "
                    f"pools that were made alike"
                )


def _made_with(pool: ImagePool) -> dict[str, Any]:
    """Return the known settings of `SAME_IN_ALL`: a pool made from a pool records only the preparation."""
    settings = {name: value for name, value in pool.manifest.settings.items() if value is not None}
    settings["fit"] = pool.preparation.fit
    return {name: settings[name] for name in SAME_IN_ALL if name in settings}


def _made_with_all(pools: Sequence[ImagePool]) -> dict[str, Any]:
    return {name: value for pool in pools for name, value in _made_with(pool).items()}


def _fill(folder: Path, pools: Sequence[ImagePool], request: dict[str, Any]) -> None:
    started = time.monotonic()
    near = _made_with_all(pools).get("dedup") == "near"
    state = IngestState(folder, pools[0].image_size, part_bytes=PART_BYTES, near=near)
    try:
        state.begin(request)
        with ExitStack() as watches, console.progress("merge", sum(map(len, pools)), "images") as bar:
            for pool in pools:
                watches.enter_context(watched(pool, to_the_end=True))
                for record, decoded in _images(pool):
                    state.add(record, decoded)
                    bar.advance()
        state.commit()
        state.write_index(folder / INDEX)
        state.write_lists(folder)
        _add_lists(folder, pools)
        duplicates, near_duplicates, _ = state.left_out()
        counts = [pool.manifest.counts for pool in pools]
        write_manifest(
            folder,
            preparation=pools[0].preparation,
            content_hash=content_hash(state.image_size, state.digests()),
            counts=Counts(
                found=sum(one.found for one in counts),
                kept=state.images,
                duplicates=duplicates + sum(one.duplicates for one in counts),
                near_duplicates=near_duplicates + sum(one.near_duplicates for one in counts),
                kept_out=sum(one.kept_out for one in counts),
                rejected=dict(sum((Counter(one.rejected) for one in counts), Counter())),
                skipped=sum(one.skipped for one in counts),
            ),
            parts=state.parts(),
            digests=state.part_digests(),
            sources=list(dict.fromkeys(source for pool in pools for source in pool.manifest.sources)),
            settings={**request, **_made_with_all(pools)},
            kept_out=_kept_out_of_all(pools),
            seconds=time.monotonic() - started,
        )
    finally:
        state.close()
    (folder / DATABASE).unlink(missing_ok=True)


def _images(pool: ImagePool) -> Iterator[tuple[Record, Decoded]]:
    """Yield a pool's images as an ingest has them."""
    rows, where = pool.index_rows(list(COLUMNS)), Path(str(pool.path)) / INDEX
    block = max(1, READ_BYTES // (3 * pool.image_size**2))
    for start in range(0, len(pool), block):
        for pixels in pool.read(slice(start, min(start + block, len(pool)))):
            source, key, sha256, width, height, name, digest = next(rows)
            if pool.stored is not pool:
                digest = pixel_digest(pixels)  # the index has that of the stored ones
            decoded = Decoded(pixels, sha256_from(sha256, where), digest, width, height, name)
            yield Record(source, key, InMemory(b"")), decoded


def _add_lists(folder: Path, pools: Sequence[ImagePool]) -> None:
    """Prepend the parts' excluded images to those of the merge; numbering of near-copy groups continues."""
    for name in LEFT_OUT:
        rows: list[list[str]] = []
        header: list[str] = []
        for path in [*(Path(str(pool.path)) / name for pool in pools), folder / name]:
            if not path.is_file():
                continue
            try:
                with path.open(newline="", encoding="utf-8") as handle:
                    header, *found = list(csv.reader(handle)) or [[]]
                if name == NEAR_DUPLICATES:
                    before = max((int(row[0]) for row in rows), default=0)
                    found = [[str(before + int(row[0])), *row[1:]] for row in found]
            except (OSError, ValueError, IndexError, csv.Error) as problem:
                raise KD3Error(f"{path} cannot be read: {problem}") from None
            rows += found
        if header:
            with replacing(folder / name) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
                csv.writer(handle).writerows([header, *rows])


def _kept_out_of_all(pools: Sequence[ImagePool]) -> list[Any]:
    """Return the test images that all the pools exclude."""
    contents = [{known.content for known in pool.manifest.kept_out} for pool in pools]
    return [known for known in pools[0].manifest.kept_out if all(known.content in one for one in contents)]


PARTS_A_CORE = 4  # so that a slow or restarted part does not delay the rest
SUFFIX = ".parts"


def ingest_on_ray(config: IngestConfig) -> ImagePool:
    """Make a pool of a crawl on a cluster and return it; the same pool as one machine makes, to the content hash.

    The parts are in `OUT.parts` until the merge; after a kill the next call continues with them.

    Raises:
        KD3Error: a part failed, and the others are kept; or the output belongs to something else.
    """
    folder = Path(config.out)
    request = ingest_request(config)
    if (folder / NAME).is_file():
        check_settings(folder, read_manifest(folder).settings.get("ingest", {}), request)
        console.info(f"pool {folder} is finished; there is nothing to do")
        return ImagePool.open(folder)
    parts = folder.with_name(folder.name + SUFFIX)
    with ray_cluster() as ray:
        number = _number_of_parts(parts) or PARTS_A_CORE * cores(ray)
        names = [f"{part}-of-{number}" for part in range(1, number + 1)]
        parts.mkdir(parents=True, exist_ok=True)
        with exclusive(parts / ".lock", what=f"pool {folder}"):
            for name in names:
                (parts / name).mkdir(exist_ok=True)  # records the number of parts
            pieces = [_piece(config, parts, name) for name in names]
            problems: list[Done] = []
            with console.progress("ingest", number, "parts") as bar:
                for done in do_all(ray, pieces):
                    if done.problem is not None:
                        problems.append(done)
                    bar.advance(1, done.name)
        pool = _merged(parts, names, problems, folder, request)
    shutil.rmtree(parts)
    return pool


def _merged(
    parts: Path, names: Sequence[str], problems: Sequence[Done], folder: Path, request: dict[str, Any]
) -> ImagePool:
    """Return the pool of the parts; parts without images are ignored."""
    failed = [done for done in problems if done.kind != NothingUsableError.__name__]
    if failed or len(problems) == len(names):
        worst = (failed or problems)[0]
        raise KD3Error(f"part {worst.name} of the crawl: {worst.problem}")
    empty = {done.name for done in problems}
    for done in problems:
        console.warn(f"part {done.name} of the crawl adds nothing: {done.problem}")
    return merge_pools([parts / name for name in names if name not in empty], folder, ingest=request)


def _number_of_parts(parts: Path) -> int | None:
    """Return the number of parts of an earlier call."""
    found = [entry.name.partition("-of-")[2] for entry in parts.glob("*-of-*")] if parts.is_dir() else []
    return int(found[0]) if found else None


def _piece(config: IngestConfig, parts: Path, name: str) -> Piece:
    values: dict[str, Any] = config.model_dump(exclude={"engine", "shard", "workers", "out"})
    values |= {"out": str(parts / name), "shard": name.replace("-of-", "/"), "workers": 1}
    return Piece(name, "kd3.pool.ingestion:ingest", values, parts / f"{name}.txt")
