"""Conversion of a published data set to a training set, a test set and a pool; a crawl becomes a pool only."""

from __future__ import annotations

import io
import re
import shutil
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from kd3.config.published import DATASETS, DataSet
from kd3.pool import ImagePool, ingest
from kd3.pool.decode import DecodeSettings, Rejected, decode
from kd3.runtime import console
from kd3.runtime.errors import KD3Error, quoted
from kd3.runtime.files import is_vacant, missing_parents, read_versioned, remove_vacant, whole_folder, write_json
from kd3.sources.record import Unreadable
from kd3.studies.published_files import LAYOUTS, TEST, TRAIN, UNCHECKED, Example, check_files, damaged, fetch, found

FORMAT, VERSION = "kd3-dataset", 1
ABOUT = "dataset.json"  # in the folder of a data set
POOL, BATCHES = "pool", "batches"  # beside it; batches only of a crawl that came in zips
BATCH = re.compile(r"train_data_batch_\d+")
COPY = 1 << 20  # bytes
AS_THEY_ARE = (b"\x89PNG", b"\xff\xd8")  # first bytes of files stored unchanged in the zips


@dataclass(frozen=True)
class Prepared:
    """A data set that is ready."""

    name: str
    folder: Path
    classes: list[str]  # in sorted order, by number where they are numbers; none of a crawl
    train: int
    test: int
    pool: ImagePool

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "name": self.name,
            "folder": str(self.folder),
            "classes": self.classes,
            "train": self.train,
            "test": self.test,
            "pool": self.pool.manifest.to_dict(),
        }

    def __str__(self) -> str:
        title = DATASETS[self.name].title
        lines = [f"{title} in {self.folder}:"]
        if self.classes:
            lines += [
                f"  train.zip   {self.train:,} images of {len(self.classes)} classes, for a teacher",
                f"  test.zip    {self.test:,}, for --eval-data and kd3 evaluate",
            ]
        use = "--original, and --method labels" if self.classes else "--pool: the crawl"
        return "\n".join([*lines, f"  {POOL + '/':<10}  {len(self.pool):,} images, for {use}"])


def prepare(
    name: str,
    files: Path,
    out: Path,
    *,
    download: bool = False,
    checked: bool = True,
    limit: int | None = None,
    workers: int | None = None,
) -> Prepared:
    """Make a data set's folder; an interrupted call is resumed.

    Args:
        name: a key of `DATASETS`.
        files: the published archive, its parent folder, or its unpacked folder; or any folder with `train/CLASS` and
            `test/CLASS`.
        download: download missing files into the folder `files`.
        checked: compare checksums and numbers of images with the published ones.
        limit: maximum number of a crawl's images.
        workers: as for `kd3 ingest`.

    Raises:
        KD3Error: the files are missing, damaged or different, the disk space is too small, or `out` holds something
            else.
    """
    dataset = DATASETS[name]
    made = missing_parents(out)
    if limit is not None and not dataset.is_crawl:
        raise KD3Error(f"limit is for a crawl (imagenet32, imagenet64); {name} is taken whole")
    if is_new := not (out / ABOUT).is_file():
        if not is_vacant(out):
            raise KD3Error(f"{out} is not empty and holds no data set; choose another --out")
        if checked:
            check_space(dataset, out, download=download, limit=limit)
        if download:
            for file in dataset.files:
                fetch(file, files)
        archives = found(dataset, files)
        if checked:
            check_files(dataset, archives, files)
        _write(name, dataset, archives, files, out, checked=checked)
    about = _about(name, out)
    sources = [out / f"{TRAIN}.zip"] if not dataset.is_crawl else [Path(about["source"] or out / BATCHES)]
    try:
        pool = ingest(sources, out / POOL, image_size=dataset.side, limit=limit, workers=workers)
        if dataset.is_crawl and checked:
            _check_crawl(dataset, pool, sources[0], limit)
    except KD3Error:
        if is_new:
            shutil.rmtree(out)
            remove_vacant(made)
        raise
    return Prepared(name, out, about["classes"], about[TRAIN], about[TEST], pool)


def prepared(name: str, folder: Path) -> Prepared:
    """Return a data set prepared before.

    Raises:
        KD3Error: it was not, or not completely; the message names the command.
    """
    if not (folder / ABOUT).is_file():
        raise KD3Error(f"{folder} holds no data set; make it by: kd3 dataset {name} FILES --out {folder}")
    about = _about(name, folder)
    return Prepared(name, folder, about["classes"], about[TRAIN], about[TEST], ImagePool.open(folder / POOL))


def _about(name: str, folder: Path) -> dict[str, Any]:
    about = read_versioned(folder / ABOUT, format_name=FORMAT, version=VERSION)
    if about.get("name") != name:
        raise KD3Error(f"{folder} holds {about.get('name')}, not {name}; choose another folder")
    return about


def bytes_needed(dataset: DataSet, *, download: bool = False, limit: int | None = None) -> int:
    """Estimate a data set's size in bytes: its pool, its zips or batches and, if requested, its archives."""
    image = 3 * dataset.side**2
    taken = min(dataset.train, limit or dataset.train) * image
    return taken + (2 if download else 1) * (dataset.train + dataset.test) * image


def check_space(dataset: DataSet, out: Path, *, download: bool, limit: int | None = None) -> None:
    """Refuse to begin with too little disk space.

    Raises:
        KD3Error: there is too little.
    """
    need, free = bytes_needed(dataset, download=download, limit=limit), free_at(out)
    if free < need:
        raise KD3Error(
            f"{dataset.title} takes about {need / 1e9:.1f} GB, and the disk of {out} has {free / 1e9:.1f} GB free"
        )


def free_at(place: Path) -> int:
    """Return the free bytes on the disk of a path that may not exist yet."""
    place = place.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _write(name: str, dataset: DataSet, archives: list[Path], files: Path, out: Path, *, checked: bool) -> None:
    about: dict[str, Any] = {"format": FORMAT, "version": VERSION, "name": name, "source": None}
    with whole_folder(out, what=f"data set {out}") as folder:
        if dataset.is_crawl:
            packed = [path for path in archives if path.suffix.lower() == ".zip"]
            if packed:
                _unpack(packed, folder / BATCHES)
            about |= {"classes": [], TRAIN: 0, TEST: 0, "source": None if packed else str(files.absolute())}
        else:
            # Of MNIST the files belong together; of the others there is one archive, or what it was unpacked to.
            place = archives[0] if len(archives) == 1 else files
            has_folders = (place / TRAIN).is_dir() and (place / TEST).is_dir() and dataset.layout != "tinyimagenet"
            layout = LAYOUTS["folders" if has_folders else dataset.layout]
            counts, classes = _pack(layout(place), place, folder, dataset.side)
            _check_counts(dataset, place, counts, classes, checked=checked)
            about |= {"classes": in_order(classes[TRAIN]), **counts}
        write_json(folder / ABOUT, about)


def _pack(
    examples: Iterator[Example], place: Path, folder: Path, side: int
) -> tuple[dict[str, int], dict[str, set[str]]]:
    """Write train.zip and test.zip, and return the number of images and the classes of each.

    Raises:
        KD3Error: an image is damaged or is none, or a class has a name that can be no folder's.
    """
    counts: Counter[str] = Counter({TRAIN: 0, TEST: 0})
    classes: dict[str, set[str]] = {TRAIN: set(), TEST: set()}
    settings = DecodeSettings(side)
    with ExitStack() as held:
        zips = {split: held.enter_context(zipfile.ZipFile(folder / f"{split}.zip", "w")) for split in (TRAIN, TEST)}
        with console.progress("reading", None, "images") as bar:
            for split, label, location, key in examples:
                if not is_name(label):
                    raise KD3Error(f"{place} is damaged: {key}: {quoted(label)} is no name of a class")
                try:
                    data = location.read()
                except Unreadable as problem:
                    raise damaged(place, key, problem.reason, problem.detail) from None
                if isinstance(found := decode(data, settings), Rejected):
                    raise damaged(place, key, found.reason, found.detail)
                data, ending = _as_picture(data)
                # The present date would make the bytes differ for equal images.
                member = zipfile.ZipInfo(f"{split}/{label}/{counts[split]:06d}{ending}")
                zips[split].writestr(member, data)
                counts[split] += 1
                classes[split].add(label)
                bar.advance(1)
    return dict(counts), classes


def is_name(label: str) -> bool:
    """Return whether a class can have a folder of its name.

    >>> is_name("sea lion"), is_name("a/b"), is_name(".."), is_name("")
    (True, False, False, False)
    """
    return label.isprintable() and not {"/", "\\"} & set(label) and bool(label.strip(". "))


def _as_picture(data: bytes) -> tuple[bytes, str]:
    """Return an image's file and its ending: PNG and JPEG as they are, others and pixels of an array as PNG."""
    if data.startswith(AS_THEY_ARE):
        return data, ".png" if data.startswith(AS_THEY_ARE[0]) else ".jpg"
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).save(buffer, "PNG")
    return buffer.getvalue(), ".png"


def _check_counts(
    dataset: DataSet, place: Path, counts: dict[str, int], classes: dict[str, set[str]], *, checked: bool
) -> None:
    for split, published in ((TRAIN, dataset.train), (TEST, dataset.test)):
        if not counts[split]:
            raise KD3Error(f"{place} is not {dataset.title} as its authors publish it: it has no {split} images")
        if checked and counts[split] != published:
            raise KD3Error(
                f"{place} is not whole: {counts[split]:,} of {published:,} {split} images of {dataset.title} are "
                f"there ({UNCHECKED})"
            )
    if unknown := sorted(classes[TEST] - classes[TRAIN]):
        raise KD3Error(f"{place} has test images of the class {quoted(unknown[0])}, and no train images of it")
    if checked and len(classes[TRAIN]) != dataset.classes:
        raise KD3Error(
            f"{place} is not {dataset.title} as its authors publish it: it has {len(classes[TRAIN])} classes, not "
            f"{dataset.classes} ({UNCHECKED})"
        )


def _check_crawl(dataset: DataSet, pool: ImagePool, source: Path, limit: int | None) -> None:
    counts = pool.manifest.counts
    is_whole = limit is None or limit >= dataset.train
    there, wanted = (counts.found, dataset.train) if is_whole else (counts.found + counts.skipped, limit)
    if source.is_dir() and there != wanted:  # an untrusted pickle may hold any part of it
        raise KD3Error(
            f"{source} is not whole: {there:,} of {wanted:,} images of {dataset.title} are there ({UNCHECKED})"
        )
    if counts.rejected:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.rejected.items())
        raise KD3Error(f"{source} is damaged: {reasons} ({UNCHECKED})")


def in_order(classes: Iterable[str]) -> list[str]:
    """Return names of classes in the order of the logits: sorted, by number where they are numbers.

    >>> in_order(["10", "9"]), in_order(["dog", "cat"])
    (['9', '10'], ['cat', 'dog'])
    """
    names = list(classes)
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else sorted(names)


def _unpack(archives: list[Path], folder: Path) -> None:
    """Copy the batches in zips into a folder.

    Raises:
        KD3Error: a zip is damaged, or has none.
    """
    folder.mkdir()
    for path in archives:
        try:
            with zipfile.ZipFile(path) as archive:
                members = [one for one in archive.infolist() if BATCH.fullmatch(one.filename.rpartition("/")[2])]
                if not members:
                    raise KD3Error(f"{path} has no batches: members called train_data_batch_1 and so on")
                for member in members:
                    target = folder / member.filename.rpartition("/")[2]
                    with archive.open(member) as source, target.open("wb") as copy:
                        shutil.copyfileobj(source, copy, COPY)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as problem:
            raise KD3Error(f"{path} is damaged: {problem}") from None
        except RuntimeError:
            raise KD3Error(f"{path} is encrypted; unpack it and give its folder") from None
