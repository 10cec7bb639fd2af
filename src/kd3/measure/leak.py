"""Detection of test images in a student's own pool."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd3 import console
from kd3.config.yaml_text import load_yaml
from kd3.errors import KD3Error
from kd3.measure.labelled import LabelledImages
from kd3.pool import ImagePool
from kd3.pool.kept_out import Found
from kd3.pool.overlap import overlap
from kd3.runs.folder import RunFolder
from kd3.runs.places import find

SHOWN = 3


@dataclass(frozen=True)
class Leak:
    """Images that a pool and labelled data share."""

    pool: str
    images: int  # number of labelled images
    found: dict[int, Found]  # by position in the pool
    keys: dict[int, str]  # of the pool's images

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON: the pairs by name."""
        pairs = [
            {
                "position": position,
                "key": self.keys.get(position),
                "test_key": known.key,
                "bits": known.bits,
                "similarity": round(known.similarity, 4),
            }
            for position, known in self.found.items()
        ]
        return {"pool": self.pool, "images": self.images, "pairs": pairs}

    @property
    def warning(self) -> str | None:
        """Warning for the user; None if nothing leaked."""
        if not self.found:
            return None
        pairs = [
            f"{self.keys.get(position, f'image {position}')} is {known.key}"
            for position, known in list(self.found.items())[:SHOWN]
        ]
        count = len({(known.source, known.key) for known in self.found.values()})
        more = ", ..." if len(self.found) > SHOWN else ""
        return (
            f"{count:,} of the {self.images:,} labelled images are in the pool {self.pool}, too, or nearly ("
            f"{', '.join(pairs)}{more}): accuracy on them is too optimistic; kd3 ingest --keep-out drops them"
        )


def leak(pool: ImagePool, data: LabelledImages) -> Leak:
    """Return the labelled images in a pool, as the same file or a near copy."""
    known = data.known(pool.preparation)
    found = overlap(pool, known)
    keys: dict[int, str] = {}
    if found and pool.path is not None:
        keys = {place: key for place, (key,) in enumerate(pool.index_rows(("key",))) if place in found}
    return Leak(str(pool.path or "in memory"), len(known), found, keys)


def pool_of_student(model: str | Path) -> ImagePool | None:
    """Return the pool that the student in a run folder, or in its `student/`, learned from.

    None, with a message, if it no longer exists; None if the model is no run's student.
    """
    folder = Path(model)
    run = RunFolder(folder if (folder / "student").is_dir() else folder.parent)
    if not (run.config.is_file() and run.origin.is_file()):
        return None
    try:
        config = load_yaml(run.config, what="configuration of the run")
        pool = ImagePool.open(find(run.path, "pool", str(config["pool"])))
        run.check_origin(pool=pool.content_hash)
    except (OSError, KeyError, TypeError, KD3Error) as problem:
        console.say(f"it is unknown whether the student trained on these images: {problem}")
        return None
    return pool
