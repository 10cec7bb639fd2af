"""The history of a training as it is written and shown, with warnings of problems."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kd3.runtime import console
from kd3.runtime.run_folder import Listener, MetricsFile, read_metrics
from kd3.runtime.text import first_of

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


SETTLED = 0.1  # part of the budget before which no agreement with the teacher is expected
FALLEN = 5.0  # points of agreement below the best, at two evaluations in a row
HARDLY_ANY = 0.01  # of the pool
ONE_CLASS = 0.95  # share of the student's predictions, if the teacher's share is below TEACHERS_SHARE
TEACHERS_SHARE = 0.8
SHOWN = 8


class Health:
    """Monitor of a run's events; `notes` returns new problems.

    Args:
        classes: their names.
        budget: training images of the whole run.
    """

    def __init__(self, classes: Sequence[str], budget: int) -> None:
        self._classes = ["".join(sign if sign.isprintable() else "?" for sign in name) for name in classes]
        self._budget = budget
        self._best = 0.0
        self._low = 0  # evaluations in a row

    def notes(self, event: str, values: Mapping[str, Any]) -> list[str]:
        """Return the problems that an event shows."""
        if event == "selection":
            return self._of_selection(values)
        if event == "evaluation":
            return self._of_agreement(values)
        return []

    def _of_selection(self, values: Mapping[str, Any]) -> list[str]:
        notes = []
        if values["kept"] < HARDLY_ANY * values["of"]:
            notes.append(
                f"the selection keeps {values['kept']:,} of {values['of']:,} images: the networks are sure of hardly "
                f"any image of the pool; kd3 shift measures its distance from the lost data"
            )
        kept, rescued = values.get("kept_per_class"), set(values.get("rescued_classes") or ())
        if kept:
            none = [name for label, name in enumerate(self._classes) if not kept[label] and label not in rescued]
            if none:
                notes.append(f"{len(none)} of {len(kept)} classes receive no image: {first_of(none, SHOWN)}")
        return notes

    def _of_agreement(self, values: Mapping[str, Any]) -> list[str]:
        agreement, chance = float(values["agreement"]), 100 / len(self._classes)
        notes = []
        if values["images"] >= SETTLED * self._budget and agreement <= chance:
            notes.append(
                f"the student agrees with the teacher on {agreement:.1f}% of the held-out images, no more than chance "
                f"({chance:.3g}%): it learns nothing; try a lower --lr and --matrix-lr, or kd3 inspect --pool for the "
                f"teacher's mean and std"
            )
        self._low = self._low + 1 if agreement < self._best - FALLEN else 0
        if self._low == 2:
            notes.append(
                f"agreement has fallen from {self._best:.1f}% to {agreement:.1f}%; the best student so far is kept; "
                f"a lower --lr may help"
            )
        self._best = max(self._best, agreement)
        own, theirs = values.get("commonest"), values.get("teachers_share_of_it")
        if own is not None and theirs is not None and own >= ONE_CLASS and theirs < TEACHERS_SHARE:
            notes.append(
                f"the student predicts one class for {100 * own:.0f}% of the held-out images (teacher: "
                f"{100 * theirs:.0f}%)"
            )
        return notes


class History:
    """Writes events to `metrics.jsonl`, passes them to listeners, and warns once of each problem.

    Args:
        path: of the metrics.
        size: bytes covered by the checkpoint; the rest is cut off.
    """

    def __init__(self, path: Path, health: Health, *, size: int, listeners: Sequence[Listener]) -> None:
        self._metrics = MetricsFile(path, size=size, listeners=listeners)
        self._health = health
        self._warned = set()
        for event in read_metrics(path):
            if event["event"] == "warning":
                self._warned.add(event["words"])
            health.notes(event["event"], event)  # restores the best values so far

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._metrics.size

    def add(self, event: str, **values: Any) -> None:
        """Write an event, and warn of the problems that it shows."""
        self._metrics.write(event, **values)
        for words in self._health.notes(event, values):
            self.warn(words, **values)

    def warn(self, words: str, *, before: str = "", **values: Any) -> None:
        """Warn unless the run has warned before; the prefix `before` (the time) does not count in this comparison."""
        if words not in self._warned:
            self._warned.add(words)
            console.warn(before + words)
            place = {name: values[name] for name in ("step", "images", "seconds") if name in values}
            self._metrics.write("warning", **place, words=words)


REFRESHES = 4  # a second
MOST_CLASSES = 10  # with a bar each; the least kept ones, if there are more
NARROW = 60  # columns; no bars below this width
BAR = 24  # columns
NOT_TERMS = ("step", "images", "seconds", "lr", "images_per_second")


class Display(Protocol):
    """Interface of a display: counts training images and receives the run's events."""

    def advance(self, amount: int, note: str = "") -> None:
        """Count training images as done."""

    def __call__(self, event: str, values: Mapping[str, Any]) -> None:
        """Receive an event of the run."""


@contextmanager
def shown(total: int, done: int, classes: Sequence[str]) -> Iterator[Display]:
    """Show the progress of a run in training images: live on a terminal, otherwise as log lines."""
    if console.is_quiet() or not _is_live():
        with console.progress("distil", total, "images", done=done) as bar:
            yield _Lines(bar)
        return
    from rich.console import Console
    from rich.live import Live

    panel = Panel(total, done, classes)
    with Live(panel, console=Console(stderr=True), refresh_per_second=REFRESHES):
        yield panel


def _is_live() -> bool:
    from rich.console import Console

    # A terminal that cannot move its cursor (TERM=dumb) gets lines, too.
    return sys.stderr.isatty() and not Console(stderr=True).is_dumb_terminal


class _Lines:
    """A log file: only the progress lines."""

    def __init__(self, bar: console.Progress) -> None:
        self._bar = bar

    def advance(self, amount: int, note: str = "") -> None:
        self._bar.advance(amount, note)

    def __call__(self, event: str, values: Mapping[str, Any]) -> None:
        pass


class Panel:
    """The live display; rich draws it on each refresh."""

    def __init__(self, total: int, done: int, classes: Sequence[str]) -> None:
        self._total, self._begun_with, self._done = total, done, done
        self._classes = ["".join(sign if sign.isprintable() else "?" for sign in name) for name in classes]
        self._start = time.monotonic()
        self._train: Mapping[str, Any] = {}
        self._selection: Mapping[str, Any] = {}
        self._agreements: list[float] = []
        self._accuracy: float | None = None

    def advance(self, amount: int, note: str = "") -> None:
        """Count training images as done."""
        self._done += amount

    def __call__(self, event: str, values: Mapping[str, Any]) -> None:
        """Receive an event of the run."""
        if event == "train":
            self._train = values
        elif event == "selection":
            self._selection = values
        elif event == "evaluation":
            self._agreements.append(values["agreement"])
            self._accuracy = values.get("accuracy")

    def __rich_console__(self, screen: Console, options: ConsoleOptions) -> RenderResult:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        line = Table.grid(padding=(0, 1))
        line.add_row(
            Text("distil", style="bold"),
            ProgressBar(
                total=self._total, completed=min(self._done, self._total), width=min(30, options.max_width // 4)
            ),
            Text(self._progress(), overflow="ellipsis", no_wrap=True),
        )
        yield line
        for words in (self._losses(), self._agreement()):
            if words:
                yield Text(words, style="dim" if words.startswith("loss") else "", overflow="ellipsis", no_wrap=True)
        kept = self._selection.get("kept_per_class")
        if kept and options.max_width >= NARROW:
            yield self._bars(kept)

    def _progress(self) -> str:
        rate = (self._done - self._begun_with) / max(time.monotonic() - self._start, 1e-9)
        words = f"{self._done:,}/{self._total:,} images"
        if rate > 0:
            words += f", {console.speed(rate)}, {console.clock((self._total - self._done) / rate)} left"
        return words

    def _losses(self) -> str:
        terms = [f"{name} {value:.3g}" for name, value in self._train.items() if name not in NOT_TERMS]
        rate = [f"lr {self._train['lr']:.3g}"] if "lr" in self._train else []
        return ", ".join([*terms, *rate]).replace("_", " ")

    def _agreement(self) -> str:
        parts = []
        if self._agreements:
            best = max(self._agreements)
            parts.append(
                f"agreement {self._agreements[-1]:.1f}%"
                + (f" (best {best:.1f})" if best > self._agreements[-1] else "")
            )
        if self._accuracy is not None:
            parts.append(f"accuracy {self._accuracy:.2f}%")
        if self._selection:
            kept, of = self._selection["kept"], self._selection["of"]
            parts.append(f"round {self._selection['round']}: {kept:,} of {of:,} images kept ({100 * kept / of:.0f}%)")
        return ", ".join(parts)

    def _bars(self, kept: Sequence[int]) -> Any:
        from rich.table import Table
        from rich.text import Text

        thresholds = self._selection.get("thresholds")  # None for selections without thresholds
        labels = sorted(range(len(kept)), key=lambda label: kept[label])[:MOST_CLASSES]
        most = max(max(kept), 1)
        table = Table.grid(padding=(0, 1))
        table.add_column(max_width=20, no_wrap=True, overflow="ellipsis")
        table.add_column(width=BAR)
        table.add_column(justify="right")
        table.add_column(justify="right", style="dim")
        for label in sorted(labels):
            length = -(-BAR * kept[label] // most)
            table.add_row(
                Text(self._classes[label]),
                Text("━" * length, style="green" if kept[label] else "red"),
                Text(f"{kept[label]:,}", style="" if kept[label] else "red"),
                Text(f"> {thresholds[label]:.2f}" if thresholds else ""),
            )
        if len(kept) > len(labels):
            table.add_row(Text(f"... {len(kept) - len(labels):,} with more", style="dim"))
        return table
