"""The history of a run: one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Listener = Callable[[str, Mapping[str, Any]], None]


class MetricsFile:
    """Appends events to `metrics.jsonl`.

    A checkpoint stores `size`; resuming cuts the file back to it, so that no event is repeated. `listeners` receive
    each event after writing.
    """

    def __init__(self, path: Path, *, size: int = 0, listeners: Sequence[Listener] = ()) -> None:
        self.path, self._listeners = path, listeners
        path.touch()
        with path.open("r+b") as handle:
            handle.truncate(size)
        self.size = size

    def write(self, event: str, **values: Any) -> None:
        """Append one event."""
        line = json.dumps({"event": event, **values}) + "\n"
        with self.path.open("ab") as handle:
            handle.write(line.encode())
            handle.flush()
            self.size = handle.tell()
        for listener in self._listeners:
            listener(event, values)


def read_metrics(path: Path, event: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the events of a run, all or those of one kind; an incomplete last line is skipped."""
    with path.open(encoding="utf-8") as handle:
        for line in handle:
            if not line.endswith("\n"):
                return
            values = json.loads(line)
            if event is None or values["event"] == event:
                yield values


def kept_accuracy(evaluations: Iterable[Mapping[str, Any]], best_step: int) -> float | None:
    """Return the accuracy of the student that a run kept, in percent; None if no image is labelled."""
    seen = [event for event in evaluations if "accuracy" in event]
    at_best = [event for event in seen if event["step"] == best_step]
    return float((at_best or seen)[-1]["accuracy"]) if seen else None
