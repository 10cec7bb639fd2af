"""`kd3 demo`: the whole workflow on generated data, through the user's commands."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd3.config.commands import DemoConfig
from kd3.config.run_records import read_summary
from kd3.demo.digits import ARCH, IMAGE_SIZE, check_extras, make_lost_data_and_crawl
from kd3.demo.picture import draw_outcome, share_of_digits
from kd3.runtime import console
from kd3.runtime.console import clock
from kd3.runtime.errors import EXIT_INTERRUPTED, EXIT_TERMINATED, KD3Error
from kd3.runtime.files import write_json
from kd3.runtime.interruption import Terminated, unhurried

MARKER = "kd3-demo.json"
STUDENT = "kd3:resnet8"
METHODS = ("kd3", "kd")
NAMES = {"teacher": "teacher", "kd": "plain KD", "kd3": "KD3"}


@dataclass(frozen=True)
class DemoResult:
    """Result of the demo."""

    folder: Path
    teacher: Path  # its description
    figures: dict[str, dict[str, Any]]  # of teacher, kd3, kd: the evaluation on the test digits
    agreement_on_web: dict[str, float]  # of kd3, kd: with the teacher on held-out web images, percent
    digits_in_pool: float  # percent of the pool
    images: int  # of each run
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {**self.__dict__, "folder": str(self.folder), "teacher": str(self.teacher)}

    def __str__(self) -> str:
        count = self.figures["teacher"]["images"]
        lines = [
            f"{STUDENT} from only the teacher {ARCH} and the crawl,",
            f"on {count} handwritten digits that were put away (real data; no method saw them):",
            f"  {'':<20} {'accuracy':>9}  {'agrees with teacher':>20}",
        ]
        for name in ("teacher", "kd", "kd3"):
            agreement = self.figures[name]["agreement"]
            words = "" if agreement is None or name == "teacher" else f"{agreement:.1f}%"
            lines.append(f"  {NAMES[name]:<20} {self.figures[name]['top1']:>7.1f}%  {words:>20}")
        lines += [
            f"{self.digits_in_pool:.0f}% of the crawl are digits, in other fonts, colours and sizes",
            f"the budget of {self.images:,} images is short: it shows who learns faster; with 20k plain KD catches up",
            f"picture: {self.folder / 'picture.png'}",
            f"all of it took {clock(self.seconds)}; one seed, so differences of a few points mean nothing",
            "before a run of your own, kd3 plan says which student to take, what it costs and what to expect; here:",
            f"  {shlex.join(['kd3', 'plan', '--teacher', str(self.teacher), '--pool', str(self.folder / 'pool')])}",
        ]
        return "\n".join(lines)


def run(config: DemoConfig) -> DemoResult:
    """Make the data, train a teacher, lose the data, and distil from the crawl.

    Raises:
        KD3Error: a library of the extra is missing, or the folder belongs to something else.
    """
    check_extras()
    start = time.monotonic()
    folder = Path(config.out)
    _clear(folder)

    console.info("1. the data that will be lost (scikit-learn's handwritten digits), and a crawl that is not like them")
    data = make_lost_data_and_crawl(folder, seed=config.seed)
    console.info("2. a teacher, trained on the data; then the data are put away")
    from kd3.demo.teacher import train_teacher

    teacher = train_teacher(data, folder / "teacher", seed=config.seed)
    console.info("3. the job: from the teacher and the crawl to a student")
    pool = folder / "pool"
    _command("ingest", str(folder / "crawl"), "--out", str(pool), "--image-size", str(IMAGE_SIZE))
    for method in METHODS:
        _command(
            *("distill", "--teacher", str(teacher), "--student", STUDENT, "--pool", str(pool)),
            *("--method", method, "--images", str(config.images), "--seed", str(config.seed)),
            *("--flip", "false"),  # a mirrored 7 is not a 7
            *("--out", str(folder / "runs" / method)),
        )
    console.info("4. how good they are, on the digits that were put away")
    models = {"teacher": teacher, **{method: folder / "runs" / method for method in METHODS}}
    figures = {name: _evaluate(model, data.lost_test, teacher) for name, model in models.items()}
    result = DemoResult(
        folder=folder,
        teacher=teacher,
        figures=figures,
        agreement_on_web={m: read_summary(folder / "runs" / m)["agreement"] for m in METHODS},
        digits_in_pool=share_of_digits(pool, data.crawl.truth_file),
        images=config.images,
        seconds=time.monotonic() - start,
    )
    draw_outcome(
        folder / "picture.png",
        pool_folder=pool,
        run=folder / "runs" / "kd3",
        lost_test=data.lost_test,
        accuracies={NAMES[name]: figures[name]["top1"] for name in ("teacher", "kd", "kd3")},
    )
    write_json(folder / MARKER, result.to_dict())
    return result


def _clear(folder: Path) -> None:
    """Take a new folder, or clear that of an earlier demo."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not (folder / MARKER).is_file():
            raise KD3Error(f"{folder} is not empty and holds no kd3 demo; choose another --out")
        console.info(f"clearing the earlier demo in {folder}")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / MARKER, {"state": "unfinished"})


def _evaluate(model: Path, data: Path, teacher: Path) -> dict[str, Any]:
    output = _command("evaluate", str(model), "--data", str(data), "--teacher", str(teacher), "--json", capture=True)
    figures: dict[str, Any] = json.loads(output)
    return figures


@unhurried()
def _command(*words: str, capture: bool = False) -> str:
    """Show a command as a user would type it, and run it."""
    console.info("$ " + shlex.join(["kd3", *words]))
    done = subprocess.run(
        [sys.executable, "-m", "kd3", *words, *(["--quiet"] if console.is_quiet() else [])],
        stdout=subprocess.PIPE if capture else sys.stderr,
        text=True,
    )
    if done.returncode == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if done.returncode == EXIT_TERMINATED:
        raise Terminated
    if done.returncode:
        raise KD3Error(f"`kd3 {words[0]}` of the demo ended with status {done.returncode}; its message is above")
    return done.stdout or ""
