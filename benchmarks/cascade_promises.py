"""Are a cascade's promises kept? `python -m benchmarks.cascade_promises --test TEST --pair NAME=STUDENT,TEACHER,POOL`.

For each pair of student and teacher, thresholds are set as `kd3 cascade` sets them and tried on the test images: set
once on the images of the pool that runs hold out, and many times on a few unlabelled test images, to be tried on the
others (`kd3 cascade --deployment`). The last rows turn the first around: set on test images, tried on the crawl.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kd3.errors import KD3Error
from kd3.markdown import escaped, table
from kd3.measure.cascade import AGREEMENTS, CONFIDENCE, Cascade, margins
from kd3.measure.intervals import share

HOLDOUT = 1000
DEPLOYED = 500  # test images that set a threshold
DRAWS = 400


@dataclass(frozen=True)
class Said:
    """Student and teacher on some images: the student's margin (N,), and whether both say the same class (N,)."""

    margin: Tensor
    same: Tensor

    def part(self, places: Tensor) -> Said:
        """Return what they say of some of these images."""
        return Said(self.margin[places], self.same[places])

    def reached(self, threshold: float) -> tuple[float, int]:
        """Return the percentage that goes to the teacher, and the number of images agreed on."""
        kept = self.margin >= threshold
        return 100 * float((~kept).double().mean()), int((self.same | ~kept).sum())


def of_logits(student: Tensor, teacher: Tensor) -> Said:
    """Return what logits (N, K) of both say."""
    return Said(margins(student), student.argmax(1) == teacher.argmax(1))


def set_once(on: Said, tried: Said, agreement: float) -> list[str]:
    """Return a row's cells: to the teacher, reached with its interval, kept or broken (in doubt: within it)."""
    found = Cascade(on.margin, on.same).threshold(agreement, CONFIDENCE)
    if found.margin is None:
        return ["", f"no threshold: {found.problem}", ""]
    escalated, agreed = tried.reached(found.margin)
    reached = share(agreed, len(tried.same))
    judged = "kept" if reached.low >= agreement else "broken" if reached.high < agreement else "in doubt"
    return [f"{escalated:.1f} %", str(reached), judged]


def set_often(said: Said, agreement: float, *, count: int = DEPLOYED, draws: int = DRAWS) -> list[str]:
    """Return the same of thresholds that many draws of `count` images set, each tried on the other images."""
    generator = np.random.default_rng(0)
    escalated, reached = [], []
    for _ in range(draws):
        order = torch.from_numpy(generator.permutation(len(said.same)))
        some, others = said.part(order[:count]), said.part(order[count:])
        found = Cascade(some.margin, some.same).threshold(agreement, CONFIDENCE)
        if found.margin is None:
            return ["", f"no threshold: {found.problem}", ""]
        asked, agreed = others.reached(found.margin)
        escalated.append(asked)
        reached.append(100 * agreed / len(others.same))
    low, middle, high = np.percentile(reached, (5, 50, 95))
    kept = 100 * float(np.mean(np.array(reached) >= agreement))
    return [
        f"{np.mean(escalated):.1f} %",
        f"{middle:.1f} (of draws, 5 to 95 %: {low:.1f} to {high:.1f})",
        f"kept in {kept:.0f} % of {draws} draws",
    ]


def rows(name: str, held_out: Said, test: Said) -> list[list[str]]:
    """Return a pair's rows."""
    ways: list[tuple[str, Callable[[float], list[str]]]] = [
        (f"{len(held_out.same):,} held-out crawl images", lambda agreement: set_once(held_out, test, agreement)),
        (f"{DEPLOYED} images like the lost ones", lambda agreement: set_often(test, agreement)),
        ("test images, tried on the crawl", lambda agreement: set_once(test, held_out, agreement)),
    ]
    return [
        [escaped(name), way, f"{agreement:g} %", *cells(agreement)] for way, cells in ways for agreement in AGREEMENTS
    ]


def answers(pairs: dict[str, tuple[str, str, str]], test: str) -> dict[str, np.ndarray]:
    """Run every pair over its pool's held-out images and the test images; return logits, by `NAME|SET`."""
    from kd3.class_names import places
    from kd3.measure.labelled import LabelledImages
    from kd3.models.classifier import load_classifier
    from kd3.pool import ImagePool
    from kd3.training.pool_split import split_pool

    found = {}
    for name, (student_path, teacher_path, pool_path) in pairs.items():
        student, teacher = load_classifier(student_path), load_classifier(teacher_path)
        order = places(student.classes, teacher.classes, whose=name, other="its teacher")
        pool = ImagePool.open(pool_path)
        data = LabelledImages(
            test, preparation=student.preparation, num_classes=student.num_classes, class_names=student.classes
        )
        held_out = torch.from_numpy(pool.read(split_pool(pool, HOLDOUT).holdout))
        images = {"held out": held_out, "test": torch.cat([batch for batch, _ in data.batches()])}
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
    parser.add_argument("--test", required=True, help="labelled images like the lost ones; their labels are not used")
    parser.add_argument("--pair", action="append", required=True, help="NAME=STUDENT,TEACHER,POOL; repeat it for more")
    parser.add_argument("--answers", type=Path, help="file to keep logits in, or with those of an earlier call")
    given = parser.parse_args()
    pairs = {name: tuple(rest.split(",")) for name, _, rest in (pair.partition("=") for pair in given.pair)}
    try:
        if given.answers and given.answers.is_file():
            kept = dict(np.load(given.answers))
        else:
            kept = answers(pairs, given.test)  # type: ignore[arg-type]
            if given.answers:
                np.savez(given.answers, **kept)  # type: ignore[arg-type]
    except KD3Error as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    logits = {name: torch.from_numpy(value) for name, value in kept.items()}
    said = {
        (name, kind): of_logits(logits[f"{name}|{kind}"], logits[f"{name}|{kind}, teacher"])
        for name in pairs
        for kind in ("held out", "test")
    }
    head = ["student", "threshold set on", "promised", "to the teacher", "agreement reached", "the promise is"]
    body = [row for name in pairs for row in rows(name, said[name, "held out"], said[name, "test"])]
    print(table([head, *body]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
