"""Records of a run, as they are read back: the folder may come from anybody, so each entry is checked first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from kd3.config.settings import Count, Settings, build, read_yaml
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import read_json
from kd3.runtime.run_folder import RunFolder, read_metrics

Percent = Annotated[float, Field(ge=0, le=100)]
Number = Annotated[int, Field(ge=0, le=1 << 60)]
Measured = Annotated[float, Field(allow_inf_nan=True)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]


class _Record(Settings):
    """Entries that kd3 reads; others, of other versions, are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)


class AdaptationRecord(_Record):
    """Adaptation of a student's batch norms; see `kd3.inheritance.adapt.Adaptation`."""

    kind: Literal["recalled", "given", "recalled from given"]
    images: Number
    where: str
    share: float = Field(ge=0, le=1)
    agreement_before: Percent
    agreement_after: Percent
    divergence_by_share: dict[str, Measured] = Field({})
    distance_before: Measured
    distance_after: Measured
    gap_before: Measured | None
    gap_after: Measured | None
    kept_out: Number
    accuracy_before: Percent | None = None
    accuracy_after: Percent | None = None

    @model_validator(mode="after")
    def _in_pairs(self) -> AdaptationRecord:
        for name in ("gap", "accuracy"):
            if (getattr(self, f"{name}_before") is None) != (getattr(self, f"{name}_after") is None):
                raise ValueError(f"{name}_before and {name}_after belong together")
        if self.divergence_by_share and "0" not in self.divergence_by_share:
            raise ValueError("divergence_by_share must hold that of share 0")
        return self


class About(_Record):
    """What a student's description tells people of its training."""

    method: str | None = None
    teacher: str | None = None
    agreement: Percent | None = None
    accuracy: Percent | None = None
    accuracy_images: Number | None = None  # 0: not all were read
    teacher_accuracy: Percent | None = None
    difference: float | None = None


class Summary(About):
    """Result of a finished run."""

    method: str
    teacher: str
    student: str
    pool: str
    pool_images: Number
    classes: list[str] = Field(min_length=1)
    agreement: Percent
    best_step: Number
    steps: Number
    images: Number
    rounds: Number
    seconds: Seconds
    images_per_second: float
    compute: str
    seed: int
    student_code: bool = False
    recall: AdaptationRecord | None = None


class _Event(_Record):
    step: Number
    images: Number
    seconds: Seconds


class TrainEvent(_Event):
    """Mean losses of some steps, by name."""

    model_config = ConfigDict(extra="allow", strict=True)
    __pydantic_extra__: dict[str, float | str | None]

    loss: float
    lr: float
    images_per_second: float


class EvaluationEvent(_Event):
    """Results on held-out images."""

    agreement: Percent
    accuracy: Percent | None = None


class SelectionEvent(_Event):
    """Images of a round."""

    kept: Number
    of: int = Field(ge=1, le=1 << 60)
    kept_per_class: list[Number] | None = None
    predicted_per_class: list[Number] | None = None
    thresholds: list[float] | None = None


class WarningEvent(_Record):
    """Warning of a training."""

    words: str


EVENTS: Mapping[str, type[_Record]] = {
    "train": TrainEvent,
    "evaluation": EvaluationEvent,
    "selection": SelectionEvent,
    "warning": WarningEvent,
}


class _Train(_Record):
    model_config = ConfigDict(strict=False)

    holdout: Count = Field(1000, ge=2)
    share: float = Field(1.0, gt=0, le=1)


class RunSettings(_Record):
    """Settings of a run by which its images are found again."""

    teacher: str
    pool: str
    train: _Train = _Train()


class Origin(_Record):
    """Inputs and machine of a run."""

    kd3: str | None = None
    started: str | None = None
    python: str | None = None
    compute: str | None = None
    teacher: str | None = None
    pool: str | None = None
    packages: dict[str, str | None] | None = None
    machine: dict[str, Any] | None = None


def read_summary(folder: Path) -> dict[str, Any]:
    """Return a finished run's `summary.json`.

    Raises:
        KD3Error: the run is not finished, its summary is damaged, or files of the run are links.
    """
    run = RunFolder(folder)
    run.refuse_links()
    path = run.summary
    if not path.exists():
        raise KD3Error(f"{folder} holds no finished run: {path.name} is missing")
    return _checked(Summary, read_json(path), path)


def read_adaptation(path: Path) -> dict[str, Any]:
    """Return the record of an adaptation; raises KD3Error as `read_summary`."""
    return _checked(AdaptationRecord, read_json(path), path)


def checked_adaptation(values: Any, where: Path) -> dict[str, Any]:
    """Return the record of an adaptation that another file holds; raises KD3Error as `read_summary`."""
    return _checked(AdaptationRecord, values, where)


def read_origin(folder: RunFolder) -> dict[str, Any]:
    """Return a run's `origin.json`; raises KD3Error as `read_summary`."""
    return _checked(Origin, read_json(folder.origin), folder.origin)


def read_settings(folder: RunFolder) -> tuple[RunSettings, dict[str, Any]]:
    """Return the checked settings by which a run's images are found, and all settings as they are.

    Raises:
        KD3Error: they are missing, no YAML, or of other types.
    """
    values = read_yaml(folder.config, what="configuration of the run")
    return build(RunSettings, values, where=str(folder.config)), values


def read_events(folder: RunFolder, *, classes: int) -> list[dict[str, Any]]:
    """Return a run's events, whose lists by class have this number of classes.

    Raises:
        KD3Error: one has no such entries.
    """
    events = []
    for event in read_metrics(folder.metrics):
        kind = str(event["event"])
        if kind in EVENTS:
            _checked(EVENTS[kind], event, folder.metrics)
        for name in ("kept_per_class", "predicted_per_class", "thresholds"):
            if kind == "selection" and event.get(name) is not None and len(event[name]) != classes:
                raise KD3Error(f"{folder.metrics} is damaged: {name} lists {len(event[name])} of {classes} classes")
        events.append(event)
    return events


def _checked(model: type[_Record], values: Any, path: Path) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise KD3Error(f"{path} is damaged: it holds no names and values")
    build(model, values, where=str(path))
    return values
