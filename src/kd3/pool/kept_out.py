"""Exclusion of test images, which a pool must not contain."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from kd3 import console
from kd3.errors import KD3Error
from kd3.pool.decode import Decoded, DecodeSettings
from kd3.pool.decoding import decode_records
from kd3.pool.near_copies import Looks, NearCopies
from kd3.pool.perceptual_hash import looks, perceptual_hashes
from kd3.pool.reasons import counted
from kd3.pool.sources import list_records
from kd3.pool.sources.names import shown
from kd3.preparation import Fit

BATCH = 256


@dataclass(frozen=True, slots=True)
class Found:
    """The known image that matches another one."""

    source: str
    key: str
    bits: int  # in which the hashes differ
    similarity: float  # of the thumbnails: 1 is equal


class KnownImages:
    """Fingerprints of images, which recognise their copies: 300 bytes and a name each."""

    def __init__(self) -> None:
        self.names: list[tuple[str, str]] = []  # source and key
        self._files: dict[bytes, int] = {}  # by the hash of the whole file
        self._looks: list[np.ndarray] = []  # float16, batch by batch
        self._near = NearCopies(self._looks_at)

    def __len__(self) -> int:
        return len(self.names)

    def add(self, names: Sequence[tuple[str, str]], files: Sequence[bytes], images: np.ndarray) -> None:
        """Add images (n, 3, N, N) uint8 with their names and the SHA-256 of their files."""
        for number, file in enumerate(files, start=len(self.names)):
            self._files.setdefault(file, number)
        self.names.extend(names)
        self._looks.append(looks(images).astype(np.float16))
        self._near.add(perceptual_hashes(images))

    def find(self, files: Sequence[bytes], hashes: np.ndarray, looks_of: Looks) -> dict[int, Found]:
        """Return the known image that each image matches, by place: the same file, or a near copy.

        `files` are the SHA-256 of the images asked about, `looks_of` gives their looks.
        """
        found = self.near(hashes, looks_of)
        for place, file in enumerate(files):
            if known := self.same_file(file):
                found[place] = known
        return dict(sorted(found.items()))

    def near(self, hashes: np.ndarray, looks_of: Looks) -> dict[int, Found]:
        """Return, by place in `hashes`, the known image of which an image is a near copy."""
        return {
            place: Found(*self.names[copy.place], bits=copy.bits, similarity=copy.similarity)
            for place, copy in self._near.find(hashes, looks_of).items()
        }

    def same_file(self, file: bytes) -> Found | None:
        """Return the known image whose file has this SHA-256."""
        number = self._files.get(file)
        return None if number is None else Found(*self.names[number], bits=0, similarity=1.0)

    def fingerprint(self) -> str:
        """Return a hash of the files' contents, for any order and names."""
        return fingerprint(self._files)

    def _looks_at(self, places: np.ndarray) -> np.ndarray:
        if len(self._looks) > 1:
            self._looks = [np.concatenate(self._looks)]
        found: np.ndarray = self._looks[0][places].astype(np.float32)
        return found


def fingerprint(files: Iterable[bytes]) -> str:
    """Return a hash of files by their SHA-256, for any order and names."""
    return hashlib.sha256(b"".join(sorted(set(files)))).hexdigest()


def read_known(source: str, *, image_size: int, fit: Fit, workers: int | None) -> KnownImages:
    """Return the images of a folder, an archive, or any other source.

    They are scaled as the pool's are, so that copies match. Files that are no images are skipped with a warning.

    Raises:
        KD3Error: there is none, or the source cannot be read.
    """
    known = KnownImages()
    records = list_records([source])
    settings = DecodeSettings(image_size, fit, min_side=1)  # test images of any size count
    waiting: list[tuple[str, str, Decoded]] = []
    unusable: Counter[str] = Counter()

    def take() -> None:
        if waiting:
            names = [(where, key) for where, key, _ in waiting]
            images = np.stack([decoded.pixels for _, _, decoded in waiting])
            known.add(names, [decoded.sha256 for _, _, decoded in waiting], images)
            waiting.clear()

    with console.progress(f"keep out {shown(source)}", None, "files") as bar:
        for outcome in decode_records(records, settings, workers=workers):
            result = outcome.result
            if isinstance(result, Decoded):
                waiting.append((outcome.record.source, outcome.record.key, result))
            else:
                unusable[result.reason] += 1
            if len(waiting) == BATCH:
                take()
            bar.advance()
        take()
    why = counted(unusable)
    if not len(known):
        raise KD3Error(f"--keep-out {shown(source)} holds no image that can be read" + (f": {why}" if why else ""))
    if why:
        console.warn(f"files in --keep-out {shown(source)} are not usable images and exclude nothing: {why}")
    return known
