"""The comparison of teacher and student as lines of a terminal, and as sentences that pages share."""

from __future__ import annotations

from collections.abc import Sequence

from kd3.measure.lost import Lost, SideBySide
from kd3.text import one_line

WORST = 4  # classes that a sentence names
OF_EACH_CLASS = (
    "Each interval is of its class alone, at 95 % confidence; those that lost most were picked from all and look a "
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
        f"On {total.images:,} labelled images {judged} (95 % interval: {low} to {high}). Only the teacher is right on "
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
    head = "per class, percent right, with 95 % intervals; the difference is paired"
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
        [f"{one.promised:g} %", f"{one.escalated:.1f} %", f"{one.agreement}", f"{one.accuracy}"] for one in lost.cascade
    ]
    return ["cascade: the student, and the teacher where it asks", *aligned(rows)]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Format rows with aligned columns, the first to the left and the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  "
        + row[0].ljust(widths[0])
        + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]


def _row(one: SideBySide) -> list[str]:
    return [one_line(one.name), f"{one.images:,}", str(one.teacher), str(one.student), one.difference.signed()]
