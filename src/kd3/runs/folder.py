"""Layout of a run folder, and the right to write into it."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kd3.errors import KD3Error
from kd3.storage.atomic import write_json, write_text

State = Literal["absent", "interrupted", "finished"]


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration; running from it repeats the run."""
        return self.path / "config.yaml"

    @property
    def origin(self) -> Path:
        """Versions, hardware, hashes of teacher and pool."""
        return self.path / "origin.json"

    @property
    def lock(self) -> Path:
        """Held by the process at work on the run."""
        return self.path / ".lock"

    @property
    def metrics(self) -> Path:
        """One JSON object a line, in order."""
        return self.path / "metrics.jsonl"

    @property
    def selections(self) -> Path:
        """Kept pool images of each round: `ROUND.npy`, positions in the pool."""
        return self.path / "selections"

    @property
    def last(self) -> Path:
        """The checkpoint to resume from."""
        return self.path / "checkpoints" / "last.pt"

    @property
    def best(self) -> Path:
        """The student's weights at the best agreement so far."""
        return self.path / "checkpoints" / "best.safetensors"

    @property
    def student(self) -> Path:
        """The shipped student."""
        return self.path / "student"

    @property
    def teacher_statistics(self) -> Path:
        """The crawl's batch-norm statistics, to which the teacher was fitted."""
        return self.path / "teacher_statistics.safetensors"

    @property
    def student_as_trained(self) -> Path:
        """The student before the adaptation of its batch norms; absent without adaptation."""
        return self.path / "student-as-trained"

    @property
    def adaptation(self) -> Path:
        """Record of the adaptation, for people; the weights hold the same record."""
        return self.path / "adaptation.json"

    @property
    def cascade(self) -> Path:
        """Cascade: the record in the student's description, and the curve."""
        return self.path / "cascade.json"

    @property
    def recalled_picture(self) -> Path:
        """A few recalled images below their originals."""
        return self.path / "recalled.png"

    @property
    def summary(self) -> Path:
        """The run's result; its presence marks a finished run."""
        return self.path / "summary.json"

    @property
    def resume_command(self) -> str:
        """Shell command that continues the run."""
        return shlex.join(["kd3", "distill", "--resume", "--out", str(self.path)])

    def check_origin(self, **identities: str) -> dict[str, Any]:
        """Refuse to resume with other inputs than the run's; return its recorded origin.

        Raises:
            KD3Error: an identity (a hash of the teacher or the pool) has changed.
        """
        try:
            before: dict[str, Any] = json.loads(self.origin.read_text(encoding="utf-8"))
        except (OSError, ValueError) as problem:
            raise KD3Error(f"{self.origin} cannot be read: {problem}") from None
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
            KD3Error: the folder holds something that is not a run.
        """
        try:
            if not self.path.exists():
                return "absent"
            if not self.path.is_dir():
                raise KD3Error(f"{self.path} is a file; --out must be a folder")
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

    def begin(self, config: str, origin: dict[str, Any]) -> None:
        """Write the identity of a new run."""
        self.selections.mkdir(exist_ok=True)
        write_json(self.origin, origin)
        write_text(self.config, config)


def read_summary(folder: Path) -> dict[str, Any]:
    """Return a finished run's `summary.json`.

    Raises:
        KD3Error: the run is not finished, or its summary is damaged.
    """
    path = RunFolder(folder).summary
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise KD3Error(f"{folder} holds no finished run: {path.name} is missing") from None
    except (OSError, ValueError) as problem:
        raise KD3Error(f"{path} cannot be read: {problem}") from None
    return summary


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".tmp")  # as `replacing` names them


def _short(identity: object) -> str:
    return str(identity)[:40]
