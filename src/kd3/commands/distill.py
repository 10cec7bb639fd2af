"""`kd3 distill`: teacher and pool in, a run folder with a student out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

from torch import nn

from kd3.commands.arguments import POOL, TEACHER, as_setting, if_live
from kd3.commands.distill_parts import Live
from kd3.commands.distill_rehearsal import Rehearsal, rehearse
from kd3.commands.distill_work import train
from kd3.config.distill import DistillConfig, layered, resumed
from kd3.config.flags import as_groups
from kd3.config.run_records import read_summary
from kd3.config.training import DEFAULT_IMAGES
from kd3.models.student import Student
from kd3.models.student_files import load_student
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool
from kd3.runtime import console
from kd3.runtime.compute import Compute, resolve
from kd3.runtime.errors import KD3Error
from kd3.runtime.launch import launched
from kd3.runtime.run_folder import RunFolder, State
from kd3.runtime.run_summary import describe
from kd3.sources.trust import with_permissions
from kd3.training.trackers import check_installed


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    summary: dict[str, Any]
    module: nn.Module | None = None  # the live backbone, if one was given

    @property
    def student(self) -> Student:
        """The run's kept student, loaded from its folder."""
        # The caller named its code when distilling it.
        return load_student(self.folder, module=self.module, trust_code=True)

    @property
    def agreement(self) -> float:
        """Percent of held-out pool images for which student and teacher predict the same class."""
        return float(self.summary["agreement"])

    def to_dict(self) -> dict[str, Any]:
        """Return the summary."""
        return self.summary

    def __str__(self) -> str:
        return describe(self.folder, self.summary)


@overload
def distill(
    teacher: str | Path | Teacher,
    student: str | nn.Module,
    pool: str | Path | ImagePool,
    out: str | Path,
    *,
    dry_run: Literal[True],
    resume: bool = ...,
    config: str | Path | None = ...,
    preset: str | None = ...,
    **settings: Any,
) -> Rehearsal: ...


@overload
def distill(
    teacher: str | Path | Teacher,
    student: str | nn.Module,
    pool: str | Path | ImagePool,
    out: str | Path,
    *,
    dry_run: Literal[False] = ...,
    resume: bool = ...,
    config: str | Path | None = ...,
    preset: str | None = ...,
    **settings: Any,
) -> Run: ...


@console.quietable
def distill(
    teacher: str | Path | Teacher,
    student: str | nn.Module,
    pool: str | Path | ImagePool,
    out: str | Path,
    *,
    dry_run: bool = False,
    resume: bool = False,
    config: str | Path | None = None,
    preset: str | None = None,
    **settings: Any,
) -> Run | Rehearsal:
    """Distil a teacher into a student and return the finished run.

    `settings` are `quiet=True` and those of `kd3 distill --help`, by the same names: `images="200k"`, `lr=0.05`,
    `method="kd"`, `seed=1`; a method's options under its name: `kd3={"threshold": 0.9}`.

    Args:
        teacher: a description file, or a live `Teacher`.
        student: an architecture (`kd3:resnet20`, `net.py:build`), `shrink:0.3` for a smaller teacher, or a
            live untrained module, of which a copy is trained.
        pool: folder made by `kd3.ingest`, or a live pool.
        out: folder of the run.
        dry_run: read, check and resolve everything, without training or writing, and return the planned run.
        resume: continue the interrupted run in `out`, with its own settings.
        config: file of settings to start from, as on the command line.
        preset: settings by name to start from.

    Raises:
        KD3Error: something in the input is wrong, and nothing has been written; or the training
            failed (a loss that is not finite), and its last checkpoint is kept.
        KeyboardInterrupt: interrupted; a checkpoint was written, `resume=True` continues.
    """
    where = "kd3.distill"
    names = {
        "teacher": as_setting(teacher, what=f"{where}: teacher", allowed=TEACHER, live=(Teacher,)),
        "student": as_setting(
            student, what=f"{where}: student", allowed="an architecture or a module", live=(nn.Module,)
        ),
        "pool": as_setting(pool, what=f"{where}: pool", allowed=POOL, live=(ImagePool,)),
        "out": as_setting(out, what=f"{where}: out", allowed="a folder"),
    }
    given = as_groups(DistillConfig, settings)
    if resume:
        if config or preset:
            raise KD3Error("resume=True takes the settings from the run folder; leave config and preset out")
        resolved = resumed({**names, **given}, where=where)
    else:
        resolved = layered({**names, **given}, config=Path(config) if config else None, preset=preset, where=where)
    live = Live(if_live(teacher, Teacher), if_live(student, nn.Module), if_live(pool, ImagePool))
    return _rehearsed(resolved, resume=resume, live=live) if dry_run else _distill(resolved, resume=resume, live=live)


def run(config: DistillConfig, *, resume: bool = False, dry_run: bool = False) -> Run | Rehearsal:
    """Run the command line's settings."""
    do = _rehearsed if dry_run else _distill
    return do(config, resume=resume, live=Live())


def begin_or_go_on(config: str, out: str) -> None:
    """Begin a run from a file of settings, or resume it if it was begun; for engines.

    Raises:
        KD3Error: as `distill`.
    """
    if RunFolder(Path(out)).state() == "interrupted":
        _distill(resumed({"out": out}, where=out), resume=True, live=Live())
    else:
        _distill(layered({"out": out}, config=Path(config), where=config), resume=False, live=Live())


@with_permissions
def _distill(config: DistillConfig, *, resume: bool, live: Live) -> Run:
    folder = RunFolder(Path(config.out))
    state = _state(folder, resume)
    if state == "finished":
        console.info(f"{folder.path} is finished; there is nothing to resume")
        return Run(folder.path, read_summary(folder.path), live.backbone(config.student))
    config, compute = _resolved(config)
    with launched(compute, devices=config.devices, nodes=config.nodes) as together:
        summary = train(config, together, state, live)
    return Run(folder.path, summary, live.backbone(config.student))


@with_permissions
def _rehearsed(config: DistillConfig, *, resume: bool, live: Live) -> Rehearsal:
    folder = RunFolder(Path(config.out))
    state = _state(folder, resume)
    if state == "finished":
        raise KD3Error(f"{folder.path} is finished; there is nothing to resume")
    return rehearse(*_resolved(config), state, live)


def _state(folder: RunFolder, resume: bool) -> State:
    state = folder.state()
    if state == "finished" and not resume:
        raise KD3Error(f"{folder.path} holds a finished run; choose another --out")
    if state == "interrupted" and not resume:
        raise KD3Error(f"{folder.path} holds an interrupted run; add --resume to continue it, or choose another --out")
    return state


def _resolved(config: DistillConfig) -> tuple[DistillConfig, Compute]:
    """Return the fully resolved settings, without any default of version or machine, and the `Compute`."""
    check_installed(config.trackers)
    compute = resolve(config.device, config.precision)
    train = config.train
    if train.images is None and train.epochs is None:
        train = train.model_copy(update={"images": DEFAULT_IMAGES})
    update = {"train": train, "device": str(compute.device), "precision": compute.precision}
    return config.model_copy(update=update).settled(rates=False), compute
