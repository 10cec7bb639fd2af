"""Advice from measurements: student, method and budget. Each rule names its page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from kd3.domain_shift.measure import Measurement
from kd3.domain_shift.verdict import Verdict
from kd3.models.teacher import Teacher
from kd3.planning.costs import Cost

LIKE_OURS = 0.33  # of the teacher's multiply-adds: ResNet-20 and ResNet-56, as in our results
AT_MOST = 0.6
USUAL, LARGEST = 200_000, 1_000_000  # training images of our results


@dataclass(frozen=True)
class Advice:
    """A recommendation, its reason, and the documentation page with the results."""

    what: str
    why: str
    page: str


def best_student(costs: Mapping[str, Cost], teacher: Cost) -> str | None:
    """Return the recommended student: faster than the teacher here, and near the size in our results.

    The first one wins a tie. None if no student is faster.
    """
    fitting = {
        name: abs(math.log(cost.multiply_adds / teacher.multiply_adds / LIKE_OURS))
        for name, cost in costs.items()
        if cost.multiply_adds <= AT_MOST * teacher.multiply_adds
        and min(cost.one / teacher.one, cost.many / teacher.many) < 1
    }
    return min(fitting, key=lambda name: round(fitting[name], 1)) if fitting else None


def method_for(teacher: Teacher) -> tuple[str, Advice]:
    """Return the method to use, and the reason."""
    if teacher.sharing_problem() is None:
        why = "84.5% on our crawl with 60,000 images; as published, SimKD reaches 76.0% with as many and plain KD 59.6%"
        return "kd3", Advice("--method kd3", why, "docs/results/table1.md")
    why = "the teacher's classifier cannot be shared with the student"
    return "kd", Advice("--method kd", why, "docs/models.md")


def budget_for(affordable: int | None) -> tuple[int, Advice]:
    """Return the training images of a run, and the reason; `affordable` is the limit by the minutes, None: not
    given.
    """
    if affordable is None:
        why = "the default; 86% on our crawl (one seed), where 60,000 images gave 84.5%"
        return USUAL, Advice(f"--images {USUAL // 1000}k", why, "docs/results/inherit-fit-recall.md")
    if affordable >= LARGEST:
        why = "what we have results of; nothing larger was tried"
        return LARGEST, Advice("--images 1M", why, "docs/results/random-start.md")
    return affordable, Advice(f"--images {affordable}", "what the minutes allow", "docs/results/random-start.md")


def for_the_crawl(found: Measurement, *, has_deployment: bool) -> list[Advice]:
    """Return advice based on the distance of the crawl."""
    level = found.verdict.level
    page = "docs/results/inherit-fit-recall.md"
    advice = []
    if level in ("far", "shifted"):
        why = (
            "recall (on by default) gained 10 to 39 points on crawls that were strongly shifted, none on the plain one"
        )
        advice.append(Advice("keep --recall auto", why, page))
    if has_deployment:
        why = "the student's batch norms are counted on your images; 100 of them were about as good as recall"
        advice.append(Advice("--deployment DIR", why, page))
    if found.verdict.hardly_covered:
        why = "a student learns little of a class that the crawl hardly shows"
        advice.append(Advice(f"crawl more of {_some(found.verdict.hardly_covered)}", why, "docs/crawl.md"))
    return advice


def expected(verdict: Verdict) -> str:
    """Describe the calibration of the range."""
    if verdict.forecast is None:
        return "no range: the teacher has no batch norms, by which the curve knows a crawl (docs/results/shift.md)"
    return (
        "the range is of a curve through 32 runs on 24 pools, ResNet-56 to ResNet-20 from a random start; of pools "
        "left out it is wrong by 5.1 points on average, and holds three in four (docs/results/shift.md). Students that "
        "inherit end higher (93% of the teacher's accuracy on our crawl after 60,000 images, where the curve has 79 to "
        "89), and on shifted crawls recall wins more than the curve knows (80 to 93% on seven crawls, docs/results/"
        "inherit-fit-recall.md); students much smaller than a third of the teacher end lower, by how much it does not "
        "know"
    )


def _some(names: list[str], shown: int = 5) -> str:
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")
