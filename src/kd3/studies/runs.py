"""The runs of a study, several at a time, each in its own process, here or on a Ray cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from kd3.config.distill import DistillConfig, differences
from kd3.config.settings import READING, build, read_yaml
from kd3.config.training import RANDOM_RATES
from kd3.runtime import console
from kd3.runtime.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, KD3Error
from kd3.runtime.files import waiting, write_text
from kd3.runtime.interruption import WITH_PARENT, Terminated, unhurried
from kd3.runtime.ray_tasks import Piece, do_all, has_gpus, ray_cluster
from kd3.runtime.run_folder import RunFolder
from kd3.studies.plan import Cell

POLL_SECONDS = 0.2
GRACE_SECONDS = 20.0


@dataclass(frozen=True)
class StudyFolder:
    """Places of a study's files."""

    path: Path

    @property
    def pools(self) -> Path:
        """Pools that the study makes."""
        return self.path / "pools"

    @property
    def distances(self) -> Path:
        """File of the pools' distances from the training data."""
        return self.path / "distances"

    @property
    def lock(self) -> Path:
        """Held by the process at work."""
        return self.path / ".lock"

    def run(self, cell: Cell) -> Path:
        """A run's folder."""
        return self.path / "runs" / cell.name

    def config(self, cell: Cell) -> Path:
        """A run's settings, before defaults are filled in."""
        return self.path / "settings" / f"{cell.name}.yaml"

    def log(self, cell: Cell) -> Path:
        """Output of a run."""
        return self.path / "logs" / f"{cell.name}.txt"


@dataclass(frozen=True)
class Failure:
    """A run that ended without a student."""

    cell: Cell
    why: str


def check_finished(study_folder: StudyFolder, cell: Cell, settings: Mapping[str, Any]) -> bool:
    """Return whether a run is finished with the same settings.

    Raises:
        KD3Error: its folder holds a run with other settings, or something else.
    """
    folder = RunFolder(study_folder.run(cell))
    state = folder.state()
    if state == "absent":
        return False
    where = f"row {cell.row!r} of the study"
    wanted = build(DistillConfig, {**settings, "out": str(folder.path)}, where=where)
    stored = {**read_yaml(folder.config, what="configuration of the run"), "out": str(folder.path)}
    found = build(DistillConfig, stored, where=str(folder.config))
    free = {*READING, *_resolved_by_run(wanted)}
    for name, old, new in differences(found.settled().model_dump(), wanted.settled().model_dump()):
        if name not in free:
            raise KD3Error(
                f"{folder.path} was run with {name} {old!r}, and row {cell.row!r} of the study wants {new!r}; bring "
                f"the study back to what it was, rename the row, or choose another --out"
            )
    return state == "finished"


def _resolved_by_run(wanted: DistillConfig) -> Iterator[str]:
    """Yield the settings that a run resolves when it begins, by dotted names."""
    yield from (name for name in ("device", "precision") if getattr(wanted, name) == "auto")
    if wanted.train.batch_size == "auto":
        yield "train.batch_size"
        yield from (f"train.{name}" for name in RANDOM_RATES if getattr(wanted.train, name) is None)


@unhurried()
def run_all(
    study_folder: StudyFolder,
    cells: Sequence[tuple[Cell, Mapping[str, Any]]],
    *,
    devices: Sequence[str],
    jobs: int,
    finished: Callable[[Cell], None],
) -> list[Failure]:
    """Run all unfinished runs, at most `jobs` at a time, and return the failures.

    Devices take turns. `finished` is called for each success. An interrupted run is resumed.

    Raises:
        KeyboardInterrupt: interrupted; all active runs have written their checkpoints.
    """
    waiting = list(cells)
    free = [devices[number % len(devices)] for number in range(jobs)]
    running: list[_Process] = []
    failures: list[Failure] = []
    try:
        while waiting or running:
            while waiting and free:
                cell, settings = waiting.pop(0)
                console.info(f"run {cell.name}: its output goes to {study_folder.log(cell)}")
                running.append(_Process(study_folder, cell, settings, free.pop(0), jobs=jobs))
            time.sleep(POLL_SECONDS)
            for process in [p for p in running if p.child.poll() is not None]:
                running.remove(process)
                free.append(process.device)
                why = process.failure()
                if why is None:
                    finished(process.cell)
                else:
                    failures.append(Failure(process.cell, why))
    except BaseException as problem:
        by_machine = isinstance(problem, Terminated)
        _stop([process.child for process in running], notified=not by_machine)
        if isinstance(problem, KeyboardInterrupt):
            kind = Terminated if by_machine else KeyboardInterrupt
            raise kind("interrupted; the same command goes on from here") from None
        raise
    return failures


def _stop(children: Sequence[subprocess.Popen[bytes]], *, notified: bool) -> None:
    """Wait until all runs have written their checkpoints and ended."""
    # Ctrl-C has reached them already; a second signal would interrupt their current step.
    for child in children if not notified else ():
        child.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.terminate()
            child.wait()


class _Process:
    """One active run."""

    def __init__(
        self, study_folder: StudyFolder, cell: Cell, settings: Mapping[str, Any], device: str, *, jobs: int
    ) -> None:
        self.cell, self.device, self.folder = cell, device, RunFolder(study_folder.run(cell))
        self._log = study_folder.log(cell)
        config = study_folder.config(cell)
        for path in (self._log, config):
            path.parent.mkdir(parents=True, exist_ok=True)
        out = ["--out", str(self.folder.path)]
        if self.folder.lock.exists():
            with waiting(self.folder.lock, what=f"run {self.folder.path}"):
                pass  # left by a killed study, and writing its last checkpoint
        if self.folder.state() == "interrupted":
            arguments = ["--resume", *out]
        else:
            write_settings(config, settings, device)
            arguments = ["--config", str(config), *out]
        environment = {**os.environ, WITH_PARENT: str(os.getpid())}
        if jobs > 1 and not device.startswith("cuda"):
            # Several runs with all cores each would slow one another down.
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
        with self._log.open("ab") as log:
            self.child = _start([sys.executable, "-m", "kd3", "distill", *arguments], log, environment)

    def failure(self) -> str | None:
        """Return the reason for a missing student of the finished process; None on success."""
        if self.child.returncode == 0 and self.folder.state() == "finished":
            return None
        if self.child.returncode in (EXIT_INTERRUPTED, -signal.SIGINT):
            raise KeyboardInterrupt
        if self.child.returncode in (EXIT_TERMINATED, -signal.SIGTERM):
            raise Terminated
        lines = [line for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return f"{lines[-1] if lines else 'it said nothing'} (status {self.child.returncode}; see {self._log})"


def write_settings(path: Path, settings: Mapping[str, Any], device: str) -> None:
    """Write a run's file of initial settings."""
    values = {name: value for name, value in settings.items() if name != "out"}
    if device != "auto":
        values["device"] = device
    write_text(path, yaml.safe_dump(values, sort_keys=False))


def _start(command: list[str], log: IO[bytes], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    # In the same process group: Ctrl-C reaches the runs too, and each writes its checkpoint.
    return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=dict(environment))


def pending(
    study_folder: StudyFolder, cells: Sequence[tuple[Cell, Mapping[str, Any]]]
) -> Iterator[tuple[Cell, Mapping[str, Any]]]:
    """Yield the runs that are not finished.

    Raises:
        KD3Error: a folder holds a run with other settings.
    """
    for cell, settings in cells:
        if not check_finished(study_folder, cell, settings):
            yield cell, settings


def made_for(study_folder: StudyFolder, cells: Iterable[Cell], planned: Iterable[Cell]) -> dict[str, Cell]:
    """Return the cell whose run folder serves each cell, by name: its own, or one with the same settings.

    A finished folder has priority, then an interrupted one, then that of the earliest row. Only `planned` cells are
    run; others serve if they are finished.
    """
    alike: dict[str, list[Cell]] = {}
    for cell in cells:
        config = build(DistillConfig, {**cell.settings, "pool": cell.pool, "out": "-"}, where=f"row {cell.row!r}")
        alike.setdefault(config.settled().model_dump_json(), []).append(cell)
    wanted = {cell.name for cell in planned}
    found = {}
    for group in alike.values():
        states = {cell.name: RunFolder(study_folder.run(cell)).state() for cell in group}
        ready = [cell for cell in group if cell.name in wanted or states[cell.name] == "finished"]
        first = min(
            ready or group, key=lambda cell: (states[cell.name] != "finished", states[cell.name] != "interrupted")
        )
        for cell in group:
            found[cell.name] = cell if states[cell.name] == "finished" else first
    return found


def run_all_on_ray(
    study_folder: StudyFolder,
    cells: Sequence[tuple[Cell, Mapping[str, Any]]],
    *,
    device: str,
    finished: Callable[[Cell], None],
) -> list[Failure]:
    """Run all unfinished runs, as many at a time as fit on the cluster, and return the failures.

    A run whose worker is lost continues elsewhere from its last checkpoint; the study's folder is on a shared disk.
    `finished` is called for each success.

    Raises:
        KD3Error: there is no cluster.
    """
    by_name = {cell.name: cell for cell, _ in cells}
    pieces = []
    for cell, settings in cells:
        if RunFolder(study_folder.run(cell)).state() == "absent":
            write_settings(study_folder.config(cell), settings, device)
        arguments = {"config": str(study_folder.config(cell)), "out": str(study_folder.run(cell))}
        pieces.append(Piece(cell.name, "kd3.commands.distill:begin_or_go_on", arguments, study_folder.log(cell)))
    failures = []
    with ray_cluster() as ray:
        for done in do_all(ray, pieces, gpus=int(has_gpus(ray) and device != "cpu")):
            if done.problem is None:
                finished(by_name[done.name])
            else:
                failures.append(Failure(by_name[done.name], done.problem))
    return failures
