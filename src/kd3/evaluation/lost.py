"""Loss of accuracy: teacher and student on the same labelled images, by class and in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from kd3.evaluation.accuracy import Bin, Interval, Reliability, paired_difference, share
from kd3.evaluation.cascade import Cascade, margins
from kd3.models.student import Student
from kd3.runtime.text import aligned, one_line

TEACHER, STUDENT, AS_TRAINED = "teacher", "student", "student as trained"


@dataclass(frozen=True)
class SideBySide:
    """Both networks on some images; in percent and points, with 95% intervals."""

    name: str
    images: int
    teacher: Interval
    student: Interval
    difference: Interval  # of the student from the teacher; paired
    only_teacher: int  # images that only the teacher gets right
    only_student: int


@dataclass(frozen=True)
class Example:
    """An image that only the teacher gets right."""

    place: int  # position among the images
    teacher: float  # its confidence in the right class, in percent
    student_class: str
    student: float  # its confidence in that, in percent


@dataclass(frozen=True)
class Reached:
    """Results of a guaranteed threshold on these images, in percent."""

    promised: float
    escalated: float
    agreement: Interval
    accuracy: Interval


@dataclass(frozen=True)
class Lost:
    """Complete results of the comparison."""

    total: SideBySide
    classes: list[SideBySide]  # those that have images, in the order of the classes
    calibration_error: dict[str, float]  # percent
    reliability: dict[str, list[Bin]]
    cascade: list[Reached]  # empty if the student has no threshold for this teacher
    examples: dict[str, list[Example]]  # by class, the most surprising first

    def worst(self, most: int) -> list[SideBySide]:
        """Return the classes with the largest losses, in order, without those that lost nothing."""
        losers = [one for one in self.classes if one.difference.value < 0]
        return sorted(losers, key=lambda one: one.difference.value)[:most]

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON, without the examples."""
        found = asdict(self)
        del found["examples"]
        return found


class Answers:
    """Predictions of teacher and student on labelled images, collected by batch, 48 bytes per image.

    Args:
        student: whose temperature and thresholds count.
        of_this_teacher: whether its thresholds are for this teacher.
    """

    def __init__(self, student: Any, *, of_this_teacher: bool = True) -> None:
        self._cascade = student.cascade if isinstance(student, Student) else None
        self._of_this_teacher = of_this_teacher
        self._temperature = student.temperature if isinstance(student, Student) else 1.0
        self._rows: list[tuple[Tensor, ...]] = []
        self._reliability = {TEACHER: Reliability(), STUDENT: Reliability()}
        if self._cascade is not None:
            self._reliability[AS_TRAINED] = Reliability()

    def add(self, logits: Tensor, labels: Tensor, teacher_logits: Tensor) -> None:
        """Add one batch. Shapes: (B, K), (B,), (B, K); the teacher's logits in the order of the student's."""
        own, theirs, labels = logits.double().cpu(), teacher_logits.double().cpu(), labels.cpu()
        shown = {TEACHER: theirs, STUDENT: own / self._temperature, AS_TRAINED: own}
        surest = {name: shown[name].softmax(dim=1).max(dim=1) for name in self._reliability}
        for name, (confidence, predicted) in surest.items():
            self._reliability[name].add(confidence, predicted == labels)
        own_class, answer = surest[STUDENT], surest[TEACHER]
        self._rows.append((labels, own_class.indices, own_class.values, answer.indices, answer.values, margins(own)))

    def lost(self, names: Sequence[str], *, examples: int = 0) -> Lost:
        """Return the comparison, with a limited number of examples per class, the most surprising ones first."""
        columns = (torch.cat(column) for column in zip(*self._rows, strict=True))
        label, own_class, sure, answer, teacher_sure, margin = columns
        own, theirs = own_class == label, answer == label
        classes = []
        shown: dict[str, list[Example]] = {}
        for place, name in enumerate(names):
            here = label == place
            if not here.any():
                continue
            classes.append(_side_by_side(name, own[here], theirs[here]))
            rows = (here & theirs & ~own).nonzero()[:, 0]
            rows = rows[(teacher_sure + sure)[rows].argsort(descending=True, stable=True)][:examples]
            shown[name] = [
                Example(row, 100 * float(teacher_sure[row]), names[int(own_class[row])], 100 * float(sure[row]))
                for row in rows.tolist()
            ]
        return Lost(
            total=_side_by_side("all", own, theirs),
            classes=classes,
            calibration_error={name: one.error_percent for name, one in self._reliability.items()},
            reliability={name: one.bins() for name, one in self._reliability.items()},
            cascade=self._reached(margin, own_class == answer, own, theirs),
            examples=shown,
        )

    def _reached(self, margin: Tensor, same: Tensor, own: Tensor, theirs: Tensor) -> list[Reached]:
        if self._cascade is None or not self._of_this_teacher:
            return []
        count, cascade = len(margin), Cascade(margin, same)
        reached = []
        for one in self._cascade["thresholds"]:
            if one["margin"] is None:
                continue
            kept = margin >= one["margin"]
            agreed, right = int((same | ~kept).sum()), int(torch.where(kept, own, theirs).sum())
            escalated, _ = cascade.at(one["margin"])
            reached.append(Reached(one["agreement"], escalated, share(agreed, count), share(right, count)))
        return reached


def _side_by_side(name: str, own: Tensor, theirs: Tensor) -> SideBySide:
    count, gained, lost = len(own), int((own & ~theirs).sum()), int((theirs & ~own).sum())
    return SideBySide(
        name,
        count,
        teacher=share(int(theirs.sum()), count),
        student=share(int(own.sum()), count),
        difference=paired_difference(gained, lost, count),
        only_teacher=lost,
        only_student=gained,
    )


WORST = 4  # classes that a sentence names
OF_EACH_CLASS = (
    "Each interval is of its class alone, at 95% confidence; those that lost most were picked from all and look a "
    "little worse than they are."
)


def total_in_words(lost: Lost) -> str:
    """Return the total loss in a sentence."""
    total, difference = lost.total, lost.total.difference
    if difference.low <= 0 <= difference.high:
        judged = "by these images the student is neither better nor worse than its teacher"
    else:
        judged = f"the student {'loses' if difference.value < 0 else 'gains'} {abs(difference.value):.1f} points"
    low, high = f"{difference.low:+.1f}", f"{difference.high:+.1f}"
    return (
        f"On {total.images:,} labelled images {judged} (95% interval: {low} to {high}). Only the teacher is right on "
        f"{total.only_teacher:,} of them, only the student on {total.only_student:,}."
    )


def worst_in_words(lost: Lost) -> str:
    """Name the classes with the largest losses in a sentence; empty if none lost anything."""
    worst = [one for one in lost.worst(WORST) if one.difference.high < 0]
    if not worst:
        return "Of no class alone is a loss beyond chance." if lost.worst(1) else ""
    return "Lost most: " + ", ".join(f"{one_line(one.name)} {one.difference.value:+.1f}" for one in worst) + " points."


def class_lines(lost: Lost) -> list[str]:
    """Return a table of both networks by class."""
    rows = [["", "images", "teacher", "student", "difference, points"], *(_row(one) for one in lost.classes)]
    head = "per class, percent right, with 95% intervals; the difference is paired"
    more = [f"only the teacher is right on {lost.total.only_teacher:,} images, only the student on "]
    more[0] += f"{lost.total.only_student:,}"
    if words := worst_in_words(lost):
        more.append(words[0].lower() + words[1:].rstrip("."))
    return [head, *aligned(rows), *more]


def cascade_lines(lost: Lost) -> list[str]:
    """Return the results of the student's thresholds on these images."""
    if not lost.cascade:
        return []
    rows = [["promised", "to the teacher", "agreement reached", "accuracy of the cascade"]]
    rows += [
        [f"{one.promised:g}%", f"{one.escalated:.1f}%", f"{one.agreement}", f"{one.accuracy}"] for one in lost.cascade
    ]
    return ["cascade: the student, and the teacher where it asks", *aligned(rows)]


def _row(one: SideBySide) -> list[str]:
    return [one_line(one.name), f"{one.images:,}", str(one.teacher), str(one.student), one.difference.signed()]
