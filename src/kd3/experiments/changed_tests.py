"""Accuracy of students on changed labelled images, stored beside the runs."""

from __future__ import annotations

import json
from collections.abc import Mapping

from kd3.compute import Compute
from kd3.experiments.plan import Cell
from kd3.experiments.runs import Layout
from kd3.measure.labelled import LabelledImages
from kd3.models.student_files import load_student
from kd3.storage.atomic import write_json


class ChangedTests:
    """Labelled images under each change of the study, by name; empty without labelled images."""

    def __init__(
        self, tests: Mapping[str, tuple[str, float]], eval_data: str | None, layout: Layout, compute: Compute
    ) -> None:
        self.tests = dict(tests) if eval_data else {}
        self.eval_data, self.layout, self.compute = str(eval_data), layout, compute
        self._data: dict[str, LabelledImages] = {}

    def accuracy(self, cell: Cell) -> dict[str, float]:
        """Return percent correct of a finished run's student on each changed test."""
        if not self.tests:
            return {}
        path = self.layout.run(cell) / "changed_tests.json"
        known: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        missing = [name for name in self.tests if name not in known]
        if missing:
            student = load_student(self.layout.run(cell), trust_code=True)  # the study's own runs
            self.compute.place(student)
            for name in missing:
                if name not in self._data:
                    self._data[name] = LabelledImages(
                        self.eval_data,
                        preparation=student.preparation,
                        num_classes=student.num_classes,
                        class_names=student.classes,
                        change=self.tests[name],
                    )
                known[name] = self._data[name].accuracy(student, self.compute)
            write_json(path, known)
        return {name: known[name] for name in self.tests}
