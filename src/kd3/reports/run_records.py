"""Records of a run, read once, and the first statement of a report, which follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kd3.config.run_records import read_adaptation, read_events, read_origin, read_settings, read_summary
from kd3.evaluation.accuracy import share
from kd3.models.student_files import read_student_description
from kd3.runtime.errors import KD3Error
from kd3.runtime.run_folder import RunFolder, kept_accuracy
from kd3.runtime.text import first_of
from kd3.sources.trust import shareable

NOT_TERMS = ("event", "step", "images", "seconds", "lr", "images_per_second")


@dataclass(frozen=True)
class RunRecords:
    """A finished run's summary, settings, origin and events."""

    folder: RunFolder
    summary: dict[str, Any]
    config: dict[str, Any]
    origin: dict[str, Any]
    events: list[dict[str, Any]]
    student: dict[str, Any]  # its description
    adaptation: dict[str, Any] | None  # of the student's batch norms: the record

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.path.resolve().name

    @property
    def classes(self) -> list[str]:
        """Names of the classes: the student's own, possibly renamed by `kd3 classes`."""
        return [str(name) for name in self.student["classes"]]

    @property
    def input_size(self) -> int | None:
        """The student's, in pixels."""
        return self.student.get("input_size")

    @cached_property
    def training(self) -> list[dict[str, Any]]:
        """Losses and speed, every few steps."""
        return self._of("train")

    @cached_property
    def evaluations(self) -> list[dict[str, Any]]:
        """Evaluations on held-out images (and labelled ones)."""
        return self._of("evaluation")

    @cached_property
    def selections(self) -> list[dict[str, Any]]:
        """Kept images of each round."""
        return self._of("selection")

    @property
    def warnings(self) -> list[str]:
        """Warnings of the training."""
        return [str(event["words"]) for event in self._of("warning")]

    @property
    def terms(self) -> list[str]:
        """The names of the loss's terms."""
        names: dict[str, None] = {}
        for event in self.training:
            names |= dict.fromkeys(name for name in event if name not in NOT_TERMS and name != "loss")
        return list(names)

    @property
    def accuracy(self) -> float | None:
        """The kept student's accuracy on labelled images, in percent; None without labelled images."""
        if self.adaptation is not None and self.adaptation["share"] > 0:
            accuracy: float | None = self.adaptation["accuracy_after"]
            return accuracy
        return kept_accuracy(self.evaluations, int(self.summary["best_step"]))

    @property
    def teacher_accuracy(self) -> float | None:
        """The teacher's accuracy on the same images, in percent; None if not measured."""
        found = self.summary.get("teacher_accuracy")
        return None if found is None else float(found)

    def _of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]


def read_run(path: str | Path) -> RunRecords:
    """Return the records of a finished run.

    Raises:
        KD3Error: it is no run, not finished, or its files are damaged.
    """
    folder = RunFolder(Path(path))
    if not folder.path.is_dir():
        raise KD3Error(f"{path} is no run folder; give one that `kd3 distill --out` made")
    if not folder.summary.is_file():
        if folder.config.is_file():
            raise KD3Error(f"the run {path} is not finished; finish it with: {folder.resume_command}")
        raise KD3Error(f"{path} is no run folder; give one that `kd3 distill --out` made")
    try:
        _, config = read_settings(folder)
        origin = read_origin(folder)
        student = read_student_description(folder.student)
        events = read_events(folder, classes=len(student["classes"]))
        adaptation = read_adaptation(folder.adaptation) if folder.adaptation.is_file() else None
        summary = read_summary(folder.path)
    except (OSError, KD3Error) as problem:
        raise KD3Error(f"the run {path} is damaged: {problem}") from None
    return RunRecords(folder, summary, shareable(config), origin, events, student, adaptation)


FALLEN = 2.0  # points of agreement between the best evaluation and the last
STILL_RISING = 1.0  # points in the last of at least four evaluations
RARE = 0.1  # of an even share of the kept images
SHOWN = 8  # classes in a note


@dataclass(frozen=True)
class Verdict:
    """One sentence, and notes to it."""

    sentence: str
    notes: list[str]


def verdict(run: RunRecords) -> Verdict:
    """Return the verdict on the records of a run."""
    summary = run.summary
    agreement = float(summary["agreement"])
    chance = 100 / len(run.classes)
    adapted = run.adaptation is not None and run.adaptation["share"] > 0
    own = float(summary.get("agreement_with_own_teacher", agreement))
    who = "The student as trained" if adapted else "The student"
    teacher = "the teacher" if own == agreement else "the fitted teacher"
    sentence = f"{who} agrees with {teacher} on {agreement:.1f}% of the held-out web images (chance: {chance:.3g}%)"
    if own != agreement:
        sentence += f", with yours on {own:.1f}%"
    if run.accuracy is not None:
        shipped = " with adapted batch norms" if adapted else ""
        sentence += f", and is{shipped} right on {run.accuracy:.1f}% of the labelled ones{_between(run.accuracy, run)}"
        if run.teacher_accuracy is not None:
            difference = run.accuracy - run.teacher_accuracy
            sentence += f" (the teacher on {run.teacher_accuracy:.1f}%: {difference:+.1f} points)"
    warned = [f"Warned in training: {words}." for words in run.warnings]
    return Verdict(sentence + ".", [*_of_agreement(run, agreement, chance), *_of_selection(run), *warned])


def _between(accuracy: float, run: RunRecords) -> str:
    """Return an accuracy's number of images and interval, if the run records them."""
    images = run.summary.get("accuracy_images")
    if not images:
        return ""
    found = share(round(accuracy * images / 100), images)
    return f" (of {images:,}, 95% interval {found.low:.1f} to {found.high:.1f})"


def _of_agreement(run: RunRecords, agreement: float, chance: float) -> list[str]:
    notes = []
    if agreement <= chance:
        notes.append("The student agrees with the teacher no more than chance does: it has learned nothing.")
    agreements = [float(one["agreement"]) for one in run.evaluations]
    if agreements and max(agreements) - agreements[-1] > FALLEN:
        fell = max(agreements) - agreements[-1]
        notes.append(f"Agreement fell by {fell:.1f} points after its best evaluation, whose student was kept.")
    if len(agreements) >= 4 and agreements[-1] - agreements[-2] > STILL_RISING and agreements[-1] == max(agreements):
        notes.append(
            f"Agreement rose by {agreements[-1] - agreements[-2]:.1f} points at the last evaluation: more training "
            f"images (--images) would help."
        )
    return notes


def _of_selection(run: RunRecords) -> list[str]:
    last = run.selections[-1] if run.selections else None
    if not last or not last.get("kept_per_class"):
        return []
    kept = last["kept_per_class"]
    even = sum(kept) / len(kept)
    none = [name for name, count in zip(run.classes, kept, strict=True) if count == 0]
    rare = [name for name, count in zip(run.classes, kept, strict=True) if 0 < count < RARE * even]
    notes = []
    if none:
        notes.append(f"{len(none)} of {len(kept)} classes receive no image: {first_of(none, SHOWN)}.")
    if rare:
        notes.append(f"{len(rare)} of {len(kept)} classes receive hardly any: {first_of(rare, SHOWN)}.")
    return notes
