"""`kd3 shift`: the distance of a pool from its teacher's training data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kd3.commands.arguments import POOL, TEACHER, as_setting, if_live, optional_setting
from kd3.config.pool_commands import ShiftConfig
from kd3.config.settings import build
from kd3.evaluation import shift_report
from kd3.evaluation.compatibility import CHECKED, fitted, normalisation_on
from kd3.evaluation.shift_measure import Measurement, Reference, drawn, measure
from kd3.models.load_teacher import load_teacher
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool
from kd3.pool.checks import watched
from kd3.runtime import console
from kd3.runtime.compute import resolve
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import write_json, write_text
from kd3.sources.trust import with_permissions


@dataclass(frozen=True)
class Shift:
    """Result of `kd3 shift`; `measurement` holds every figure."""

    teacher: str
    pool: str
    compute: str
    measurement: Measurement
    files: list[str] = field(default_factory=list)  # the written files

    @property
    def title(self) -> str:
        """The compared teacher and pool."""
        return f"{self.pool} beside the training data of {self.teacher}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        values = asdict(self.measurement)
        if values["features"] is not None:
            # Named ends, not a list of three numbers.
            for place, distance in enumerate(self.measurement.features.distances if self.measurement.features else []):
                values["features"]["distances"][place]["all_images"] = distance.all_images._asdict()
        return {"teacher": self.teacher, "pool": self.pool, "compute": self.compute, **values, "files": self.files}

    def __str__(self) -> str:
        written = f"\nwritten: {', '.join(self.files)}" if self.files else ""
        return shift_report.text(self.measurement, f"{self.title} ({self.compute})") + written


@console.quietable
def shift(
    teacher: str | Path | Teacher,
    pool: str | Path | ImagePool,
    *,
    reference: str | Path | None = None,
    **settings: Any,
) -> Shift:
    """Measure how far a pool is from a teacher's training data.

    `settings` are `quiet=True` and those of `kd3 shift --help`: out, limit, seed, trust_code, device, precision,
    workers.

    Args:
        teacher: its description, or a live teacher.
        pool: folder made by `kd3.ingest`, or a live pool.
        reference: folder, zip, tar or pool of images like the teacher's training data; adds
            distances in its feature space. A few hundred are enough.

    Raises:
        KD3Error: teacher, pool or reference are missing, damaged or of different sizes.
    """
    values = {
        "teacher": as_setting(teacher, what="kd3.shift: teacher", allowed=TEACHER, live=(Teacher,)),
        "pool": as_setting(pool, what="kd3.shift: pool", allowed=POOL, live=(ImagePool,)),
        "reference": optional_setting(reference, what="kd3.shift: reference", allowed="a path"),
    }
    config = build(ShiftConfig, {**values, **settings}, where="kd3.shift")
    return run(config, if_live(teacher, Teacher), if_live(pool, ImagePool))


@with_permissions
def run(config: ShiftConfig, teacher: Teacher | None = None, pool: ImagePool | None = None) -> Shift:
    """Measure the pool and teacher that the settings name, or live ones."""
    compute = resolve(config.device, config.precision)
    out = _folder(config.out)
    teacher = teacher or load_teacher(config.teacher, trust_code=config.trust_code or None)
    pool = pool or ImagePool.open(config.pool)
    teacher, pool = fitted(teacher, pool)
    reference = None
    if config.reference is not None:
        if len(pool) < 2:
            raise KD3Error(f"the pool {config.pool} has one image; a comparison with a reference takes at least 2")
        reference = Reference(config.reference, teacher, limit=config.limit, seed=config.seed, workers=config.workers)
    compute.place(teacher)
    with watched(pool):
        places = drawn(len(pool), CHECKED.small, config.seed)
        if doubt := normalisation_on(teacher, pool, compute, places).warning:
            console.warn(doubt)
        found = measure(teacher, pool, reference, compute, limit=config.limit, seed=config.seed)
    return _written(Shift(config.teacher, config.pool, str(compute), found), out)


def _folder(out: str | None) -> Path | None:
    """Return the folder for the files, created now, since an error an hour later would be too late.

    Raises:
        KD3Error: it cannot be made.
    """
    if out is None:
        return None
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise KD3Error(f"--out {out} cannot be made a folder: {problem.strerror}") from None
    return Path(out)


def _written(found: Shift, out: Path | None) -> Shift:
    if out is None:
        return found
    pictures: list[str] = []
    try:
        if shift_report.available():
            pictures = shift_report.draw(out, found.measurement)
        else:
            console.warn(shift_report.MISSING)
        names = ["shift.json", "shift.md", *pictures]
        whole = Shift(found.teacher, found.pool, found.compute, found.measurement, [str(out / name) for name in names])
        write_text(out / "shift.md", shift_report.markdown(found.measurement, found.title, pictures))
        write_json(out / "shift.json", whole.to_dict())
    except OSError as problem:
        raise KD3Error(f"the results cannot be written to {out}: {problem.strerror or problem}") from None
    return whole
