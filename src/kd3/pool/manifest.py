"""Manifest of a pool."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import Field

from kd3.config.settings import Settings
from kd3.errors import KD3Error
from kd3.pool.index_file import INDEX
from kd3.pool.left_out import LEFT_OUT
from kd3.preparation import Preparation
from kd3.storage.atomic import write_json
from kd3.storage.versioned import read_versioned
from kd3.version import __version__

FORMAT: Literal["kd3-pool"] = "kd3-pool"
VERSION = 1
NAME = "manifest.json"
LISTS = (INDEX, *LEFT_OUT)
DERIVING = "deriving.json"  # beside the parts of a derived pool until it is finished


class Part(Settings):
    """One file of packed pixels: raw uint8, (images, 3, N, N)."""

    file: str
    images: int


class Counts(Settings):
    """Outcomes of the files."""

    found: int  # everything but sidecars
    kept: int
    duplicates: int
    rejected: dict[str, int]  # by reason
    skipped: int  # sidecars and hidden files
    near_duplicates: int = 0
    kept_out: int = 0  # copies of test images


class KeptOut(Settings):
    """Test images that the pool excludes."""

    source: str
    images: int
    content: str  # hash of their files, in any order: `fingerprint`


class Manifest(Settings):
    """The pool's `manifest.json`, written last: a folder without it is no finished pool."""

    format: Literal["kd3-pool"]
    version: int
    image_size: int
    images: int
    content_hash: str
    counts: Counts
    parts: list[Part]
    sources: list[str]
    settings: dict[str, Any]
    preparation: dict[str, Any] | None = None  # of its pictures; earlier versions stored it in the settings
    kept_out: tuple[KeptOut, ...] = ()
    files: dict[str, str] = Field({})  # SHA-256 of the index, the lists beside it, and the parts
    kd3: str
    created: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return self.model_dump(mode="json")

    def how_made(self) -> Preparation:
        """Return the preparation of its pictures.

        Raises:
            ValueError: this kd3 does not know the preparation.
        """
        fit = self.settings.get("fit")  # of pools that earlier versions ingested or merged
        return Preparation.of(self.preparation or (fit and {"fit": fit}) or None, size=self.image_size)


def write_manifest(
    folder: Path,
    *,
    preparation: Preparation,
    content_hash: str,
    counts: Counts,
    parts: list[Part],
    digests: Mapping[str, str],
    sources: list[str],
    settings: dict[str, Any],
    seconds: float,
    kept_out: Sequence[KeptOut] = (),
) -> None:
    """Finish a pool: write its manifest, atomically, with this version of kd3 and the time; parts have `digests`."""
    manifest = Manifest(
        format=FORMAT,
        version=VERSION,
        image_size=preparation.size,
        preparation=preparation.to_dict(),
        images=sum(part.images for part in parts),
        content_hash=content_hash,
        counts=counts,
        parts=parts,
        sources=sources,
        settings=settings,
        kept_out=tuple(kept_out),
        files={**{name: sha256_of(folder / name) for name in LISTS if (folder / name).is_file()}, **digests},
        kd3=__version__,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=round(seconds, 3),
    )
    write_json(folder / NAME, manifest.to_dict())


def sha256_of(path: Path) -> str:
    """Return the hash of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while data := handle.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()


def content_hash(image_size: int, digests: Iterable[bytes]) -> str:
    """Return the hash of a pool's pixels, in order.

    It does not depend on the images' sources or the division into parts.
    """
    total = hashlib.sha256(f"kd3-pool {image_size}\n".encode())
    for digest in digests:
        total.update(digest)
    return total.hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Return a pool's manifest.

    Raises:
        KD3Error: the folder is missing, no pool, unfinished, damaged or written by a newer kd3.
    """
    path = folder / NAME
    if not folder.exists():
        raise KD3Error(f"pool {folder} does not exist; make it with: kd3 ingest SOURCE --out {folder} --image-size N")
    if not path.is_file():
        if (folder / "ingest.sqlite").is_file():
            raise KD3Error(f"pool {folder} is not finished; run the same `kd3 ingest` command again to finish it")
        if (folder / DERIVING).is_file():
            raise KD3Error(f"pool {folder} is not finished; derive it once more")
        raise KD3Error(f"{folder} is not a pool: {NAME} is missing")
    values = read_versioned(path, format_name=FORMAT, version=VERSION)
    try:
        return Manifest.model_validate(values)
    except pydantic.ValidationError as problem:
        first = problem.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise KD3Error(f"{path} is damaged: {name}: {first['msg']}") from None
