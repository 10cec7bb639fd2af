"""The end of a run in words: selected images, agreement of the student, next steps."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from kd3.console import clock
from kd3.runs.adaptation import in_words
from kd3.runs.folder import RunFolder
from kd3.runs.metrics import read_metrics
from kd3.text import one_line


def describe(folder: Path, summary: dict[str, Any]) -> str:
    """Return the final summary of `kd3 distill`."""
    run = RunFolder(folder)
    lines = [
        f"{one_line(summary['student'])} from {one_line(summary['teacher'])}, "
        f"method {summary['method']}, seed {summary['seed']}",
        f"  trained on   {summary['images']:,} images in {clock(summary['seconds'])} "
        f"({summary['images_per_second']:,.0f} images/s, {summary['compute']}), {summary['rounds']} rounds",
    ]
    lines += _what_the_teacher_gave(summary)
    selections = list(read_metrics(run.metrics, "selection"))
    if selections:
        first, last = selections[0], selections[-1]
        lines.append(
            f"  selected     {_share(first)} of the pool in the first round, {_share(last)} in the last"
            if first["kept"] < first["of"] or first["kept_per_class"]
            else f"  selected     all {first['kept']:,} training images of the pool"
        )
        if last["kept_per_class"]:
            pairs = list(zip(summary["classes"], last["kept_per_class"], strict=True))
            shown = ", ".join(f"{one_line(name)} {n:,}" for name, n in pairs[:20]) + (
                ", ..." if len(pairs) > 20 else ""
            )
            lines.append(f"  last round   {shown}")
    fitted = _blend(summary) > 0
    which = "the fitted teacher" if fitted else "the teacher"
    lines.append(
        f"  agreement    {summary['agreement']:.1f} % with {which} on held-out web images "
        f"(kept from step {summary['best_step']:,} of {summary['steps']:,}; "
        f"{summary['agreement_at_end']:.1f} % at the end)"
    )
    if fitted:
        lines.append(f"               {summary['agreement_with_own_teacher']:.1f} % with the teacher as it was given")
    accuracy = summary.get("accuracy")
    if accuracy is not None:
        lines.append(f"  accuracy     {accuracy:.2f} % on --eval-data, for the student kept (it chose nothing)")
    if summary.get("teacher_accuracy") is not None:
        difference = f"the student has {summary['difference']:+.2f} points"
        lines.append(f"  teacher      {summary['teacher_accuracy']:.2f} % on --eval-data; {difference}")
    if record := summary.get("recall"):
        lines.append(f"  recall       {in_words(record)}")
    lines.append(f"  student      {run.student}")
    live_student, live_teacher = (summary[name].startswith("live:") for name in ("student", "teacher"))
    module = ", module=..." if live_student else ""
    trust = ""
    if summary.get("student_code"):
        module, trust = ", trust_code=True", " --trust-code"
    lines.append("next:")
    if not live_student:
        teacher = "" if live_teacher else f" --teacher {shlex.quote(summary['teacher'])}"
        lines.append(f"  kd3 evaluate {shlex.quote(str(folder))} --data TEST{teacher}{trust}")
        lines.append(f"  kd3 report {shlex.quote(str(folder))}{trust}")
    lines.append(f"  python -c \"import kd3; student = kd3.load_student('{folder}'{module})\"")
    if live_student:
        lines.append(f"  python -c \"import kd3; kd3.export('{folder}', 'OUT', module=...)\"")
        lines.append("  module is the network that was given, or one like it, which the folder does not hold")
    return "\n".join(lines)


def _what_the_teacher_gave(summary: dict[str, Any]) -> list[str]:
    """Return lines about inherited weights and fitted statistics, if any."""
    lines = []
    if summary.get("inherited"):
        lines.append(f"  started      from the teacher's weights: {100 * summary['inherited']:.0f}% of its parameters")
    if blend := _blend(summary):
        fit = summary["teacher_statistics"]
        lines.append(
            f"  teacher      fitted to the crawl, which gives {100 * blend:.0f}% of its batch-norm statistics; "
            f"distance {fit['distance']:.3f} -> {fit['distance_left']:.3f}"
        )
    return lines


def _blend(summary: dict[str, Any]) -> float:
    return float((summary.get("teacher_statistics") or {}).get("blend", 0))


def _share(selection: dict[str, Any]) -> str:
    return f"{selection['kept']:,} images ({100 * selection['kept'] / selection['of']:.0f} %)"
