"""Check the promises of cascades: `python -m benchmarks.cascade_promises --test TEST --pair NAME=STUDENT,TEACHER,POOL`.

For each pair of student and teacher, thresholds are set as `kd3 cascade` sets them and tried on the test images: set
once on the images of the pool that runs hold out, and many times on a few unlabelled test images, to be tried on the
others (`kd3 cascade --deployment`). The last rows turn the first around: set on test images, tried on the crawl.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kd3.evaluation.accuracy import Reliability, fit_temperature, share
from kd3.evaluation.cascade import AGREEMENTS, CONFIDENCE, Cascade, margins
from kd3.runtime.errors import KD3Error
from kd3.runtime.text import escaped, table

HOLDOUT = 1000
DEPLOYED = 500  # test images for setting a threshold
DRAWS = 400
KINDS = ("held out", "held out, teacher", "test", "test, teacher", "labels")  # of the stored logits


@dataclass(frozen=True)
class Said:
    """Student and teacher on some images: the student's margin (N,), and whether both predict the same class (N,)."""

    margin: Tensor
    same: Tensor

    def part(self, places: Tensor) -> Said:
        """Return the predictions on some of these images."""
        return Said(self.margin[places], self.same[places])

    def reached(self, threshold: float) -> tuple[float, int]:
        """Return the percentage of escalated images, and the number of agreements."""
        kept = self.margin >= threshold
        return 100 * float((~kept).double().mean()), int((self.same | ~kept).sum())


def of_logits(student: Tensor, teacher: Tensor) -> Said:
    """Return the predictions of both networks' logits (N, K)."""
    return Said(margins(student), student.argmax(1) == teacher.argmax(1))


def set_once(on: Said, tried: Said, agreement: float) -> str:
    """Return a table's cell: escalated share, reached agreement, and whether the guarantee holds."""
    found = Cascade(on.margin, on.same).threshold(agreement, CONFIDENCE)
    if found.margin is None:
        return f"no threshold: {found.problem}"
    escalated, agreed = tried.reached(found.margin)
    reached = share(agreed, len(tried.same))
    judged = "kept" if reached.low >= agreement else "**broken**" if reached.high < agreement else "in doubt"
    return f"{escalated:.1f}% → {reached}, {judged}"


def set_often(said: Said, agreement: float, *, count: int = DEPLOYED, draws: int = DRAWS) -> str:
    """Return the same of thresholds that many draws of `count` images set, each tried on the other images."""
    generator = np.random.default_rng(0)
    escalated, reached = [], []
    for _ in range(draws):
        order = torch.from_numpy(generator.permutation(len(said.same)))
        some, others = said.part(order[:count]), said.part(order[count:])
        found = Cascade(some.margin, some.same).threshold(agreement, CONFIDENCE)
        if found.margin is None:
            return f"no threshold: {found.problem}"
        asked, agreed = others.reached(found.margin)
        escalated.append(asked)
        reached.append(100 * agreed / len(others.same))
    low, middle, high = np.percentile(reached, (5, 50, 95))
    kept = 100 * float(np.mean(np.array(reached) >= agreement))
    return f"{np.mean(escalated):.1f}% → {middle:.1f} ({low:.1f} to {high:.1f}), kept in {kept:.0f}%"


def tables(said: Mapping[str, tuple[Said, Said]]) -> str:
    """Return a table for each way to set thresholds: what goes to the teacher → agreement reached, and the verdict.

    `said`: by pair, on held-out images of the pool and on the test images.
    """
    held_out, test = "held-out images of the pool", "test images"
    ways: list[tuple[str, Callable[[Said, Said, float], str]]] = [
        (f"set on {held_out}, tried on {test}", lambda pool, lost, agreement: set_once(pool, lost, agreement)),
        (
            f"set on {DEPLOYED} {test}, tried on the others; medians of {DRAWS} draws (5 to 95% of them)",
            lambda pool, lost, agreement: set_often(lost, agreement),
        ),
        (f"set on {test}, tried on {held_out}", lambda pool, lost, agreement: set_once(lost, pool, agreement)),
    ]
    parts = []
    for words, cell in ways:
        rows = [["student", "alone: pool, test", *(f"{agreement:g}%" for agreement in AGREEMENTS)]]
        for name, (pool, lost) in said.items():
            alone = ", ".join(f"{100 * float(one.same.double().mean()):.1f}%" for one in (pool, lost))
            rows.append([escaped(name), alone, *(cell(pool, lost, agreement) for agreement in AGREEMENTS)])
        parts += [words, table(rows)]
    return "\n\n".join(parts)


def measures(logits: Mapping[str, tuple[Tensor, Tensor]], agreement: float = 98.0) -> str:
    """Return a table of what goes to the teacher, on the test images that set the threshold, by four measures.

    `logits`: by pair, student's and teacher's on the test images.
    """
    kinds: dict[str, Callable[[Tensor], Tensor]] = {
        "margin": margins,
        "largest probability": lambda z: z.softmax(1).amax(1),
        "entropy": lambda z: (z.softmax(1) * z.log_softmax(1)).sum(1),
        "largest logit": lambda z: z.amax(1),
    }
    rows = [["student", *kinds]]
    for name, (own, theirs) in logits.items():
        same = own.argmax(1) == theirs.argmax(1)
        sure = [kind(own.double()) for kind in kinds.values()]
        found = [Cascade(one - one.min(), same).threshold(agreement, CONFIDENCE) for one in sure]
        rows.append([escaped(name), *(f"{one.escalated:.1f}%" for one in found)])
    return f"to the teacher for {agreement:g}%, by what the threshold is on\n\n{table(rows)}"


def temperatures(logits: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Return a table of temperatures by held-out images of the pool, and calibration errors on the test labels.

    `logits`: by pair, "held out" and "test" of the student, "held out, teacher" and "test, teacher", "labels".
    """
    rows = [["student", "temperature", "teacher", "student as trained", "scaled"]]
    for name, found in logits.items():
        temperature = fit_temperature(found["held out"], found["held out, teacher"].argmax(1))
        ways = [(found["test, teacher"], 1.0), (found["test"], 1.0), (found["test"], temperature)]
        errors = [Reliability.of(one, found["labels"], scale).error_percent for one, scale in ways]
        rows.append([escaped(name), f"{temperature:.2f}", *(f"{error:.1f}%" for error in errors)])
    return f"temperature by the pool, calibration error on the labels of the test images\n\n{table(rows)}"


def answers(pairs: dict[str, tuple[str, str, str]], test: str) -> dict[str, np.ndarray]:
    """Run every pair over its pool's held-out images and the test images; return logits, by `NAME|SET`."""
    from kd3.config.records import places
    from kd3.evaluation.labelled import LabelledImages
    from kd3.models.student_files import load_classifier
    from kd3.pool import ImagePool
    from kd3.scoring.batches import split_pool

    found: dict[str, np.ndarray] = {}
    for name, (student_path, teacher_path, pool_path) in pairs.items():
        student, teacher = load_classifier(student_path), load_classifier(teacher_path)
        order = places(student.classes, teacher.classes, whose=name, other="its teacher")
        pool = ImagePool.open(pool_path)
        data = LabelledImages(test, preparation=student.preparation, class_names=student.classes)
        held_out = torch.from_numpy(pool.read(split_pool(pool, HOLDOUT).holdout))
        batches, labels = zip(*data.batches(), strict=True)
        found[f"{name}|labels"] = torch.cat(labels).numpy()
        images = {"held out": held_out, "test": torch.cat(batches)}
        with torch.inference_mode():
            for kind, pixels in images.items():
                parts = pixels.split(256)  # type: ignore[no-untyped-call]
                own = torch.cat([student(student.normalise(part)) for part in parts])
                theirs = torch.cat([teacher(teacher.normalise(part))[:, order] for part in parts])
                found |= {f"{name}|{kind}": own.numpy(), f"{name}|{kind}, teacher": theirs.numpy()}
    return found


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cascade_promises", description=__doc__)
    parser.add_argument("--test", required=True, help="labelled images like the lost ones; the labels set no threshold")
    parser.add_argument("--pair", action="append", required=True, help="NAME=STUDENT,TEACHER,POOL; repeat it for more")
    parser.add_argument("--answers", type=Path, help="file to keep logits in, or with those of an earlier call")
    given = parser.parse_args()
    pairs = {name: tuple(rest.split(",")) for name, _, rest in (pair.partition("=") for pair in given.pair)}
    try:
        if given.answers and given.answers.is_file():
            kept = dict(np.load(given.answers))
        else:
            kept = answers(pairs, given.test)
            if given.answers:
                np.savez(given.answers, **kept)  # type: ignore[arg-type]
    except KD3Error as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    logits = {name: torch.from_numpy(value) for name, value in kept.items()}
    by_pair = {name: {kind: logits[f"{name}|{kind}"] for kind in KINDS} for name in pairs}
    said = {
        name: tuple(of_logits(found[kind], found[f"{kind}, teacher"]) for kind in ("held out", "test"))
        for name, found in by_pair.items()
    }
    print(tables(said))  # type: ignore[arg-type]
    print("\n" + measures({name: (found["test"], found["test, teacher"]) for name, found in by_pair.items()}))
    print("\n" + temperatures(by_pair))
    return 0


if __name__ == "__main__":
    sys.exit(main())
