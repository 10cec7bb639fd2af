"""First statement of a report: the quality of the student, and the points to check."""

from __future__ import annotations

from dataclasses import dataclass

from kd3.measure.intervals import share
from kd3.run_report.records import RunRecords

FALLEN = 2.0  # points of agreement between the best evaluation and the last
STILL_RISING = 1.0  # points in the last of at least four evaluations
RARE = 0.1  # of an even share of the kept images


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
    sentence = (
        f"The student says what the teacher says on {agreement:.1f} % of the web images that were held out "
        f"(chance: {chance:.3g} %)"
    )
    if run.accuracy is not None:
        sentence += f", and is right on {run.accuracy:.1f} % of the labelled ones{_between(run.accuracy, run)}"
        if run.teacher_accuracy is not None:
            difference = run.accuracy - run.teacher_accuracy
            sentence += f" (the teacher on {run.teacher_accuracy:.1f} %: {difference:+.1f} points)"
    warned = [f"Warned in training: {words}." for words in run.warnings]
    return Verdict(sentence + ".", [*_of_agreement(run, agreement, chance), *_of_selection(run), *warned])


def _between(accuracy: float, run: RunRecords) -> str:
    """Return an accuracy's number of images and interval, if the run records them."""
    images = run.summary.get("accuracy_images")
    if not images:
        return ""
    found = share(round(accuracy * images / 100), images)
    return f" (of {images:,}, 95 % interval {found.low:.1f} to {found.high:.1f})"


def _of_agreement(run: RunRecords, agreement: float, chance: float) -> list[str]:
    notes = []
    if agreement <= chance:
        notes.append("The student agrees with the teacher no more than chance does: it has learned nothing.")
    looks = [float(look["agreement"]) for look in run.evaluations]
    if looks and max(looks) - looks[-1] > FALLEN:
        fell = max(looks) - looks[-1]
        notes.append(f"Agreement fell by {fell:.1f} points after its best look, which is the one that was kept.")
    if len(looks) >= 4 and looks[-1] - looks[-2] > STILL_RISING and looks[-1] == max(looks):
        notes.append(
            f"Agreement rose by {looks[-1] - looks[-2]:.1f} points at the last look: more training images (--images) "
            f"would help."
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
        notes.append(f"{len(none)} of {len(kept)} classes receive no image: {_some(none)}.")
    if rare:
        notes.append(f"{len(rare)} of {len(kept)} classes receive hardly any: {_some(rare)}.")
    return notes


def _some(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
