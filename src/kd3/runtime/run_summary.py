"""A finished run in words: selected images, agreement, adaptation, cascade, next steps."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd3.runtime.console import clock
from kd3.runtime.run_folder import RunFolder, read_metrics
from kd3.runtime.text import first_of, one_line


def adaptation_images_in_words(record: Mapping[str, Any]) -> str:
    """Describe the images for the statistics."""
    where = Path(str(record["where"])).name or str(record["where"])
    if record["kind"] == "recalled":
        return f"{record['images']:,} images recalled from the teacher (begun as images of the pool {where})"
    if record["kind"] == "recalled from given":
        return f"{record['images']:,} images recalled from the teacher (begun as unlabelled images of {where})"
    return f"{record['images']:,} unlabelled images of {where}"


def adaptation_in_words(record: Mapping[str, Any]) -> str:
    """Describe the adaptation in one sentence."""
    images, before = adaptation_images_in_words(record), record["agreement_before"]
    divergences = record.get("divergence_by_share", {})  # runs of earlier versions have none
    if not record["share"]:
        return (
            f"The student stays as trained: batch-norm statistics of {images} do not bring it closer to the teacher on "
            f"them; they agree on {before:.1f}%."
        )
    words = (
        f"The student takes {100 * record['share']:.0f}% of its batch-norm statistics from {images}: on these it "
        f"agrees with the teacher on {record['agreement_after']:.1f}%, as trained on {before:.1f}%"
    )
    if (taken := divergences.get(f"{record['share']:g}")) is not None:
        words += f"; its divergence from the teacher's probabilities falls from {divergences['0']:.3f} to {taken:.3f}"
    if record.get("accuracy_before") is not None:
        words += f"; it is right on {record['accuracy_after']:.2f}% of --eval-data, as trained on "
        words += f"{record['accuracy_before']:.2f}%"
    return words + "."


def distances_in_words(record: Mapping[str, Any]) -> str:
    """Describe the distance of the statistics before and after."""
    words = (
        f"Mean batch-norm distance of the student from these images: {record['distance_before']:.3f} as trained, "
        f"{record['distance_after']:.3f} now."
    )
    if record["gap_before"] is not None:
        words += (
            f" Distance of the images from the teacher's statistics: {record['gap_before']:.3f} before, "
            f"{record['gap_after']:.3f} recalled."
        )
    if record["kept_out"]:
        words += f" {record['kept_out']:,} images like a test image were left out."
    return words


def with_adaptation(summary: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's summary with an adaptation: its accuracy is that of the shipped student."""
    trained = summary.get("accuracy_as_trained", summary.get("accuracy"))
    accuracy = record["accuracy_after"] if record["share"] else trained
    teachers = summary.get("teacher_accuracy")
    return {
        **summary,
        "recall": dict(record),
        "accuracy": accuracy,
        "accuracy_as_trained": trained,
        "difference": None if accuracy is None or teachers is None else accuracy - teachers,
    }


def cascade_images_in_words(record: Mapping[str, Any]) -> str:
    """Describe the measured images."""
    if record["of"] == "deployment":
        return f"{record['images']:,} unlabelled images of {record['where']}"
    return f"{record['images']:,} held-out images of the pool {record['where']}"


def cascade_in_words(record: Mapping[str, Any]) -> list[str]:
    """Describe the choice, its guarantee and its images in sentences."""
    error = record["calibration_error"]
    if "threshold" not in record:
        chosen = "No threshold is chosen yet; kd3 cascade does it."
    elif not record["threshold"]:
        chosen = f"Chosen: {record['agreement']:g}%, which the student reaches without its teacher."
    else:
        chosen = f"Chosen: {record['agreement']:g}%. The student asks the teacher where its largest logit is less than "
        chosen += f"{record['threshold']:.3f} above the second."
    if record["of"] == "deployment":
        like = "The promise holds for images like these."
    else:
        like = "The promise holds for images like the crawl; images from where the student will work (--deployment) "
        like += "make a promise for those."
    scaled = f"Temperature {record['temperature']:.2f}: the student's probabilities miss the teacher's agreement by "
    scaled += f"{error['scaled']:.1f} points on average, as trained by {error['as trained']:.1f} (calibration error)."
    return [chosen, like, scaled]


def thresholds_in_words(record: Mapping[str, Any]) -> list[str]:
    """Return a line for each agreement, with the share of escalated images."""
    lines = [
        f"On {cascade_images_in_words(record)} the student agrees with its teacher on "
        f"{record['agreement_alone']:.1f}%.",
        f"Agreement of the cascade, promised at {record['confidence']:g}% confidence:",
    ]
    for one in record["thresholds"]:
        if one["margin"] is None:
            lines.append(f"{one['agreement']:5g}%  no threshold: {one['problem']}")
        else:
            lines.append(f"{one['agreement']:5g}%  {one['escalated']:5.1f}% of the images go to the teacher")
    return lines


def describe(folder: Path, summary: dict[str, Any]) -> str:
    """Return the final summary of `kd3 distill`."""
    run = RunFolder(folder)
    rounds = f"{summary['rounds']} round{'s' * (summary['rounds'] != 1)}"
    lines = [
        f"{one_line(summary['student'])} from {one_line(summary['teacher'])}, "
        f"method {summary['method']}, seed {summary['seed']}",
        f"  trained on   {summary['images']:,} images in {clock(summary['seconds'])} "
        f"({summary['images_per_second']:,.0f} images/s, {summary['compute']}), {rounds}",
    ]
    lines += _what_the_teacher_gave(summary)
    selections = list(read_metrics(run.metrics, "selection"))
    if selections:
        first, last = selections[0], selections[-1]
        lines.append(
            f"  selected     all {first['kept']:,} training images of the pool"
            if first["kept"] == first["of"] and not first["kept_per_class"]
            else f"  selected     {_share(first)} of the pool"
            if len(selections) == 1
            else f"  selected     {_share(first)} of the pool in the first round, {_share(last)} in the last"
        )
        if last["kept_per_class"]:
            pairs = zip(summary["classes"], last["kept_per_class"], strict=True)
            shown = first_of([f"{one_line(name)} {n:,}" for name, n in pairs], 20)
            lines.append(f"  last round   {shown}")
    fitted = _blend(summary) > 0
    which = "the fitted teacher" if fitted else "the teacher"
    lines.append(
        f"  agreement    {summary['agreement']:.1f}% with {which} on held-out web images "
        f"(kept from step {summary['best_step']:,} of {summary['steps']:,}; "
        f"{summary['agreement_at_end']:.1f}% at the end)"
    )
    if fitted:
        lines.append(f"               {summary['agreement_with_own_teacher']:.1f}% with the teacher as it was given")
    accuracy = summary.get("accuracy")
    if accuracy is not None:
        lines.append(f"  accuracy     {accuracy:.2f}% on --eval-data, for the student kept (it chose nothing)")
    if summary.get("teacher_accuracy") is not None:
        difference = f"the student has {summary['difference']:+.2f} points"
        lines.append(f"  teacher      {summary['teacher_accuracy']:.2f}% on --eval-data; {difference}")
    if record := summary.get("recall"):
        lines.append(f"  recall       {adaptation_in_words(record)}")
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
    place = json.dumps(str(folder), ensure_ascii=False)
    lines.append("  " + _python(f"student = kd3.load_student({place}{module})"))
    if live_student:
        lines.append("  " + _python(f'kd3.export({place}, "OUT", module=...)'))
        lines.append("  module is the network that was given, or one like it, which the folder does not hold")
    return "\n".join(lines)


def _python(code: str) -> str:
    return shlex.join(["python", "-c", f"import kd3; {code}"])


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
    return f"{selection['kept']:,} images ({100 * selection['kept'] / selection['of']:.0f}%)"
