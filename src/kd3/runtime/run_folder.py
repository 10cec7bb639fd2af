"""A run's folder: its layout, history and origin, and the present places of its teacher, pool and images.

Current places of a run's teacher, student code, pool and labelled images, from any working directory. A run stores
each path as given (config.yaml, summary.json) and relative to its own folder (origin.json). So paths are found from
another working directory, and after moving the run together with its inputs.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any, Literal

from kd3.runtime.errors import KD3Error
from kd3.runtime.files import LARGEST, read_json, refuse_links, write_json, write_text
from kd3.version import __version__

State = Literal["absent", "interrupted", "finished"]


class Place:
    """A path inside a folder: a class attribute of an object with a `path`."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def __get__(self, folder: Any, _: object = None) -> Path:
        return Path(folder.path, *self._names)


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder."""

    path: Path

    config = Place("config.yaml")  # the resolved configuration; running from it repeats the run
    origin = Place("origin.json")  # versions, hardware, hashes of teacher and pool
    lock = Place(".lock")  # held by the process at work on the run
    metrics = Place("metrics.jsonl")  # one JSON object a line, in order
    selections = Place("selections")  # kept pool images of each round: `ROUND.npy`, positions in the pool
    last = Place("checkpoints", "last.pt")  # the checkpoint to resume from
    best = Place("checkpoints", "best.safetensors")  # the student's weights at the best agreement so far
    student = Place("student")  # the shipped student
    teacher_statistics = Place("teacher_statistics.safetensors")  # the crawl's, to which the teacher was fitted
    student_as_trained = Place("student-as-trained")  # before its batch norms were adapted; absent if they were not
    adaptation = Place("adaptation.json")  # record of the adaptation, for people; the weights hold the same record
    cascade = Place("cascade.json")  # the record in the student's description, and the curve
    recalled_picture = Place("recalled.png")  # a few recalled images below their originals
    summary = Place("summary.json")  # the run's result; its presence marks a finished run

    @property
    def resume_command(self) -> str:
        """Shell command that continues the run."""
        return shlex.join(["kd3", "distill", "--resume", "--out", str(self.path)])

    def refuse_links(self) -> None:
        """Refuse links among the run's own files: it may be somebody else's, and kd3 reads and writes them by name.

        Raises:
            KD3Error: one is a link.
        """
        files = (self.config, self.origin, self.lock, self.metrics, self.adaptation, self.cascade, self.summary)
        folders = (self.selections, self.last.parent, self.student, self.student_as_trained, *self._of_trackers)
        refuse_links([*files, *folders, self.last, self.best, self.teacher_statistics])

    @property
    def _of_trackers(self) -> tuple[Path, ...]:
        return self.path / "tensorboard", self.path / "wandb"

    def check_origin(self, **identities: str) -> dict[str, Any]:
        """Refuse to resume with other inputs than the run's; return its recorded origin.

        Raises:
            KD3Error: an identity (a hash of the teacher or the pool) has changed.
        """
        before = read_json(self.origin)
        if not isinstance(before, dict):
            raise KD3Error(f"{self.origin} cannot be read: it does not hold what a run is made of")
        for name, now in identities.items():
            if before.get(name) != now:
                raise KD3Error(
                    f"the {name} is not what the run {self.path} was begun with (was {_short(before.get(name))}, is "
                    f"{_short(now)}); bring it back, or start a new run in another --out"
                )
        return before

    def state(self) -> State:
        """Return the state of the folder.

        Raises:
            KD3Error: the folder holds something that is not a run, or links.
        """
        try:
            if not self.path.exists():
                return "absent"
            if not self.path.is_dir():
                raise KD3Error(f"{self.path} is a file; --out must be a folder")
            self.refuse_links()
            names = {entry.name for entry in self.path.iterdir() if not _is_temporary(entry)}
            if not names - {self.lock.name, self.origin.name, self.selections.name}:
                return "absent"  # or killed before its settings, written last, made it a run
        except OSError as problem:
            raise KD3Error(f"--out {self.path} cannot be used: {problem.strerror}") from None
        if self.summary.is_file():
            return "finished"
        if self.config.is_file():
            return "interrupted"
        raise KD3Error(f"{self.path} is not empty and holds no kd3 run; choose another --out")

    def make(self) -> None:
        """Make the folder.

        Raises:
            KD3Error: it cannot be made or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock.touch()
        except OSError as problem:
            raise KD3Error(f"--out {self.path} cannot be written: {problem.strerror}") from None

    def clear_temporary(self) -> None:
        """Remove temporary files of killed processes; the caller must hold the lock."""
        for path in self.path.rglob("*"):
            if _is_temporary(path):
                path.unlink(missing_ok=True)

    def forget_training(self) -> None:
        """Remove what a training has learned so far: the run begins anew when it is resumed."""
        for path in (self.last, self.best, self.teacher_statistics, *self.selections.glob("*.npy")):
            path.unlink(missing_ok=True)

    def begin(self, config: str, origin: dict[str, Any]) -> None:
        """Write the identity of a new run."""
        self.selections.mkdir(exist_ok=True)
        write_json(self.origin, origin)
        write_text(self.config, config)


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".tmp")  # as `replacing` names them


def _short(identity: object) -> str:
    return str(identity)[:40]


Listener = Callable[[str, Mapping[str, Any]], None]


class MetricsFile:
    """Appends events to `metrics.jsonl`.

    A checkpoint stores `size`; resuming cuts the file back to it, so that no event is repeated. `listeners` receive
    each event after writing.
    """

    def __init__(self, path: Path, *, size: int = 0, listeners: Sequence[Listener] = ()) -> None:
        self.path, self._listeners = path, listeners
        path.touch()
        with path.open("r+b") as handle:
            handle.truncate(size)
        self.size = size

    def write(self, event: str, **values: Any) -> None:
        """Append one event."""
        line = json.dumps({"event": event, **values}) + "\n"
        with self.path.open("ab") as handle:
            handle.write(line.encode())
            handle.flush()
            self.size = handle.tell()
        for listener in self._listeners:
            listener(event, values)


LARGEST_HISTORY = 512 << 20  # bytes: 300 selections of 21,000 classes have half of it


def read_metrics(path: Path, event: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the events of a run, all or those of one kind; an incomplete last line is skipped.

    Raises:
        KD3Error: the file is missing, no file, too large, or holds something else.
    """
    if not path.is_file():  # reading a pipe or a device would never end
        raise KD3Error(f"{path} cannot be read: it is missing or no file")
    with path.open("rb") as handle:
        if os.fstat(handle.fileno()).st_size > LARGEST_HISTORY:
            raise KD3Error(f"{path} cannot be read: it has more than {LARGEST_HISTORY >> 20} MiB")
        for number in count(1):
            line = handle.readline(LARGEST + 1)
            if len(line) > LARGEST:
                raise KD3Error(f"{path} cannot be read: line {number} has more than {LARGEST >> 20} MiB")
            if not line.endswith(b"\n"):
                return
            values = _event(line)
            if values is None:
                raise KD3Error(f"{path} cannot be read: line {number} holds no event")
            if event is None or values["event"] == event:
                yield values


def _event(line: bytes) -> dict[str, Any] | None:
    """Return the event in a line; None if it holds another thing, such as lists of lists, which no event has."""
    try:
        values = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not isinstance(values.get("event"), str):
        return None
    nested = (one for value in values.values() for one in (value if isinstance(value, list) else [value]))
    return None if any(isinstance(one, (dict, list)) for one in nested) else values


def kept_accuracy(evaluations: Iterable[Mapping[str, Any]], best_step: int) -> float | None:
    """Return the accuracy of the student that a run kept, in percent; None if no image is labelled."""
    seen = [event for event in evaluations if "accuracy" in event]
    at_best = [event for event in seen if event["step"] == best_step]
    return float((at_best or seen)[-1]["accuracy"]) if seen else None


PLACES = ("teacher", "student", "pool", "eval_data", "deployment", "keep_out")
KEY = "places"


def from_run(folder: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the paths among a run's settings that exist, relative to its folder; for origin.json.

    If a setting names several, they are keyed by the given path.
    """
    found: dict[str, Any] = {}
    for name in PLACES:
        given = values.get(name)
        if isinstance(given, list):
            several = {one: place for one in given if (place := _relative(folder, one)) is not None}
            found |= {name: several} if several else {}
        elif isinstance(given, str) and (place := _relative(folder, given)) is not None:
            found[name] = place
    return found


def _relative(folder: Path, given: str) -> str | None:
    path = _file_of(given)
    try:
        return Path(os.path.relpath(path, folder)).as_posix() + given[len(str(path)) :] if path.exists() else None
    except ValueError:  # on another drive
        return None


def find(folder: Path, name: str, given: str) -> str:
    """Return the present location of one of a run's paths.

    The search tries the given path, if absolute; then the run's folder; then the working directory. A value that was no
    path when the run began (a network of a library, a live object) is returned unchanged.

    Raises:
        KD3Error: it is at none of these places, which are named.
    """
    kept = _kept(folder).get(name)
    relative = kept.get(given) if isinstance(kept, dict) else kept
    if not isinstance(relative, str):
        return given
    from_folder = os.path.normpath(folder / relative)
    places = dict.fromkeys([given, from_folder] if _file_of(given).is_absolute() else [from_folder, given])
    for place in places:
        if _file_of(place).exists():
            return place
    where = list(dict.fromkeys(str(_file_of(place).absolute()) for place in places))
    tried = f"not at {where[0]}" if len(where) == 1 else f"neither at {' nor at '.join(where)}"
    flag = f"--{name.replace('_', '-')}"
    raise KD3Error(f"the {name} of the run {folder} is {tried}; say where it is with {flag}, or bring it back")


def found(folder: Path, values: Mapping[str, Any], *, but: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's settings with present paths; those named in `but` are not searched.

    Raises:
        KD3Error: one is missing.
    """
    changed = dict(values)
    for name in PLACES:
        given = values.get(name)
        if given is None or name in but:
            continue
        several = isinstance(given, list)
        changed[name] = [find(folder, name, str(one)) for one in given] if several else find(folder, name, str(given))
    return changed


def _kept(folder: Path) -> dict[str, Any]:
    try:
        kept = read_json(RunFolder(folder).origin)[KEY]
    except (KD3Error, KeyError, TypeError, IndexError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _file_of(given: str) -> Path:
    """Return the path in `net.py:build` or of a plain path."""
    file, colon, _ = given.rpartition(":")
    return Path(file if colon and file.endswith(".py") else given)


PACKAGES = ("torch", "lightning-fabric", "numpy", "pillow")


def origin(**identities: str) -> dict[str, Any]:
    """Return versions and hardware of this process with the identities given."""
    return {
        "kd3": __version__,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "machine": {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()},
        **identities,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """Return the name of the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as handle:
            for line in handle:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
