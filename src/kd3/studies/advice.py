"""Advice from measurements (student, method, budget) and the results of `kd3 plan`. Each rule names its page."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from kd3.evaluation.shift_measure import Measurement
from kd3.evaluation.shift_verdict import WITHOUT_INHERITANCE, Forecast, Verdict, errors_on_pools_left_out
from kd3.models.costs import Cost
from kd3.models.teacher import Teacher
from kd3.runtime.console import clock
from kd3.runtime.text import aligned, first_of, one_line
from kd3.studies.candidates import Exported, Pace

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
        why = "the default; 85.7% on our crawl, where 60,000 images gave 84.5%"
        return USUAL, Advice(f"--images {USUAL // 1000}k", why, "docs/results/inherit-fit-recall.md")
    if affordable >= LARGEST:
        why = "what we have results of; nothing larger was tried"
        return LARGEST, Advice("--images 1M", why, "docs/results/inherit-fit-recall.md")
    return affordable, Advice(f"--images {affordable}", "what the minutes allow", "docs/results/random-start.md")


def for_the_crawl(found: Measurement, *, has_deployment: bool) -> list[Advice]:
    """Return advice based on the distance of the crawl."""
    level = found.verdict.level
    page = "docs/results/inherit-fit-recall.md"
    advice = []
    if level in ("far", "shifted"):
        why = "recall (on by default) gained 3 to 41 points on crawls that were shifted, half a point on the plain one"
        advice.append(Advice("keep --recall auto", why, page))
    if has_deployment:
        why = "the student's batch norms are counted on your images; 100 of them were about as good as recall"
        advice.append(Advice("--deployment DIR", why, page))
    if found.verdict.hardly_covered:
        why = "a student learns little of a class that the crawl hardly shows"
        advice.append(Advice(f"crawl more of {first_of(found.verdict.hardly_covered, 5)}", why, "docs/crawl.md"))
    return advice


def expected(verdict: Verdict) -> str:
    """Describe the calibration of the range."""
    if verdict.forecast is None:
        return "no range: the teacher has no batch norms, by which the curve knows a crawl (docs/results/shift.md)"
    test = errors_on_pools_left_out()
    return (
        f"the range comes from a curve through {test['points']} points on {test['pools']} pools, ResNet-56 to "
        f"ResNet-20 with inherited weights. On pools left out its mean error is {test['mean_error']:g} points, and "
        f"{test['inside']} of {test['points']} fall inside (docs/results/shift.md). Expect less from a student that "
        f"inherits little or is much smaller than a third of its teacher: {WITHOUT_INHERITANCE}"
    )


EXPORTED = ("as ONNX", "one image", "in int8", "{batch} images", "in int8", "disk in int8")
HEAD = ("student", "parameters", "multiply-adds", "disk", "memory", "one image", "{batch} images", "inherits", "a run")


@dataclass(frozen=True)
class Choice:
    """A candidate, and the duration of a run with it."""

    name: str
    cost: Cost
    inherits: float  # part of its parameters, in [0, 1]
    seconds: float  # of the recommended budget


@dataclass(frozen=True)
class Plan:
    """Recommended student, cost of a run, expected result."""

    teacher: str
    pool: str
    pool_images: int
    compute: str
    verdict: Verdict
    teacher_cost: Cost
    choices: list[Choice]
    student: str | None  # recommended; None: no candidate is faster than the teacher
    pace: Pace
    method: str
    images: int  # the budget
    advice: list[Advice]
    forecast: Forecast | None  # for that budget
    deployment: str | None = None  # one sentence on these images
    problems: list[str] = field(default_factory=list)  # shares to which the teacher cannot be shrunk, failed exports
    exported: dict[str, Exported] = field(default_factory=dict)  # by candidate, and "teacher"; empty: not requested

    @property
    def command(self) -> str:
        """The recommended run as a shell command."""
        student = self.student or min(self.choices, key=lambda choice: choice.cost.multiply_adds).name
        words = ["kd3", "distill", "--teacher", self.teacher, "--student", student, "--pool", self.pool]
        words += ["--method", self.method] if self.method != "kd3" else []
        return shlex.join([*words, "--images", str(self.images), "--out", "runs/first"])

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {**asdict(self), "expected": expected(self.verdict), "command": self.command if self.choices else None}

    def __str__(self) -> str:
        lines = [
            f"{one_line(self.teacher)} and the {self.pool_images:,} images of {one_line(self.pool)}",
            f"  crawl       {self.verdict.about_crawl}",
            *([f"              {self.deployment}"] if self.deployment else []),
            *self._table(),
            *self._exported_table(),
            *(f"  not         {one_line(problem)}" for problem in self.problems),
        ]
        if not self.choices:
            return "\n".join([*lines, "  student     none of the teacher's family is smaller; name one of your own"])
        lines += [
            f"  student     {self._student()}",
            f"  run         {self.images:,} images in about {clock(self._seconds())}: {self.pace.steps} steps of "
            f"{self.pace.batch} images took {1000 * self.pace.seconds:.0f} ms each ({self.compute})",
            *(
                f"  {'advice' if not place else '':<10}  {one.what}: {one.why} ({one.page})"
                for place, one in enumerate(self.advice)
            ),
            f"  expect      {self._range()}",
            f"              {expected(self.verdict)}",
            "next:",
            f"  {self.command}",
        ]
        return "\n".join(lines)

    def _seconds(self) -> float:
        return next(
            (choice.seconds for choice in self.choices if choice.name == self.student), self.choices[-1].seconds
        )

    def _student(self) -> str:
        if self.student is None:
            return "none of these is faster than the teacher on this machine; a run saves disk and memory only"
        cost = next(choice.cost for choice in self.choices if choice.name == self.student)
        return (
            f"begin with {self.student}: {self.teacher_cost.multiply_adds / cost.multiply_adds:.1f} times fewer "
            f"multiply-adds, {self.teacher_cost.many / cost.many:.1f} times as fast in batches"
        )

    def _range(self) -> str:
        if self.forecast is None:
            return "unknown"
        if self.forecast.beyond:
            return f"no more than {100 * self.forecast.high:.0f}% of the teacher's accuracy: no such crawl was tried"
        return f"{100 * self.forecast.low:.0f} to {100 * self.forecast.high:.0f}% of the teacher's accuracy"

    def _table(self) -> list[str]:
        batch = self.teacher_cost.batch
        rows = [tuple(name.format(batch=batch) for name in HEAD), _row("teacher", self.teacher_cost, "", "")]
        rows += [
            _row(choice.name, choice.cost, f"{100 * choice.inherits:.0f}%", clock(choice.seconds))
            for choice in self.choices
        ]
        return aligned(rows)

    def _exported_table(self) -> list[str]:
        if not self.exported:
            return []
        sizes = sorted(next(iter(self.exported.values())).int8)
        rows = [tuple(name.format(batch=sizes[-1]) for name in EXPORTED)]
        for name, one in self.exported.items():
            times = [f"{times[size]:.1f} ms" for size in (sizes[0], sizes[-1]) for times in (one.float32, one.int8)]
            rows.append((name, *times, f"{one.bytes / 1e6:.1f} MB"))
        return aligned(rows)


def _row(name: str, cost: Cost, inherits: str, run: str) -> tuple[str, ...]:
    return (
        name,
        f"{cost.parameters / 1e6:.2f} M",
        f"{cost.multiply_adds / 1e6:,.1f} M",
        f"{cost.bytes / 1e6:.1f} MB",
        f"{cost.memory / 1e6:.1f} MB",
        f"{cost.one:.1f} ms",
        f"{cost.many:.0f} ms",
        inherits,
        run,
    )
