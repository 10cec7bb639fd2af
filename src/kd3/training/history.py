"""Event log of a training, with warnings of problems."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd3 import console
from kd3.runs.metrics import Listener, MetricsFile, read_metrics
from kd3.training.health import Health


class History:
    """Writes events to `metrics.jsonl`, passes them to listeners, and warns once of each problem.

    Args:
        path: of the metrics.
        size: bytes covered by the checkpoint; the rest is cut off.
    """

    def __init__(self, path: Path, health: Health, *, size: int, listeners: Sequence[Listener]) -> None:
        self._metrics = MetricsFile(path, size=size, listeners=listeners)
        self._health = health
        self._told = set()
        for event in read_metrics(path):
            if event["event"] == "warning":
                self._told.add(event["words"])
            health.notes(event["event"], event)  # restores the best values so far

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._metrics.size

    def tell(self, event: str, **values: Any) -> None:
        """Write an event, and warn of the problems that it shows."""
        self._metrics.write(event, **values)
        for words in self._health.notes(event, values):
            self.warn(words, **values)

    def warn(self, words: str, *, before: str = "", **values: Any) -> None:
        """Warn unless the run has warned before; the prefix `before` (the time) does not count in this comparison."""
        if words not in self._told:
            self._told.add(words)
            console.warn(before + words)
            place = {name: values[name] for name in ("step", "images", "seconds") if name in values}
            self._metrics.write("warning", **place, words=words)
