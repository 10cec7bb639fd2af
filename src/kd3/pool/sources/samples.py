"""Samples of WebDataset: members of a tar with one name, of which each field begins behind the name's first dot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kd3.pool.reasons import SIDECAR
from kd3.pool.record import InMemory, Location, Unusable

IMAGE_FIELDS = frozenset(
    ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif", "heic", "jxl", "jp2")
)
# Of one name; more are no sample, and must not fill the memory.
MOST_WAITING = 16
MOST_BYTES = 64 << 20


def without_masks(members: Iterable[tuple[str, Location]]) -> Iterator[tuple[str, Location]]:
    """Yield the members of a tar, the fields of a sample beside its image as sidecars.

    `0001.seg.png` beside `0001.jpg` is the field "seg.png" of sample 0001: a mask or the like, and no image of the
    crawl. With no `0001.jpg` it is a file whose name has a dot. A sample's members lie side by side.
    """
    sample: str | None = None
    has_image = False
    waiting: list[tuple[str, Location]] = []
    try:
        for name, location in members:
            found, field = parts(name)
            if found != sample:
                yield from waiting
                sample, has_image, waiting = found, False, []
            if not has_image and field.lower() in IMAGE_FIELDS:
                has_image = True
                yield from ((one, _sidecar(one, place)) for one, place in waiting)
                waiting = []
            if has_image:
                yield name, _sidecar(name, location)
            elif "." in field or waiting:
                waiting.append((name, location))
                if len(waiting) > MOST_WAITING or _bytes(waiting) > MOST_BYTES:
                    yield from waiting
                    waiting = []
            else:
                yield name, location
    except Exception:
        yield from waiting  # members before the damage of an archive are good
        raise
    yield from waiting


def parts(name: str) -> tuple[str, str]:
    """Return the sample that a member belongs to, and its field.

    >>> parts("train/0001.seg.png"), parts("v1.0/readme")
    (('train/0001', 'seg.png'), ('v1.0/readme', ''))
    """
    folder, slash, last = name.rpartition("/")
    sample, _, field = last.partition(".")
    return folder + slash + sample, field


def _sidecar(name: str, location: Location) -> Location:
    if isinstance(location, Unusable):
        return location  # which may know where its labels are
    return Unusable(SIDECAR) if "." in parts(name)[1] else location


def _bytes(members: Iterable[tuple[str, Location]]) -> int:
    held = (place.contents if isinstance(place, Unusable) else place for _, place in members)
    return sum(len(place.data) for place in held if isinstance(place, InMemory))
