"""`kd3 reproduce`: a table of the paper, repeated from data sets on disk, beside the published accuracies."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd3 import console, markdown
from kd3.commands import study
from kd3.commands.paper_plan import PaperPlan, check_disk, data_sets, plan_table, study_config
from kd3.commands.paper_teacher import check_given, teacher_of
from kd3.compute import resolve
from kd3.config.datasets import DATASETS
from kd3.config.paper import TABLES, Pair, ReproduceConfig, chosen
from kd3.datasets.prepare import prepared
from kd3.experiments.table import Spread
from kd3.storage.atomic import write_json, write_text

PAGE, JSON = "table.md", "results.json"
_EXPLAINED = (
    "Accuracy in percent on the data set's test images: mean ± sample standard deviation over seeds, of the student "
    "that is kept by its agreement with the teacher; labelled images chose nothing. Published figures are of other "
    "code, teachers and crawls; docs/paper.md of kd3 has their sources."
)


@dataclass(frozen=True)
class Reproduced:
    """A table with the results so far."""

    folder: Path
    page: str
    values: dict[str, Any]  # by pair: "teacher" (its accuracy), "rows" (accuracy by row), "published"

    def to_dict(self) -> dict[str, Any]:
        """Return the accuracies."""
        return self.values

    def __str__(self) -> str:
        return f"{self.page}\nwritten to {self.folder}: {PAGE}, {JSON}; every pair's study is a folder there"


def run(config: ReproduceConfig) -> Reproduced | PaperPlan:
    """Run the command line's settings.

    Raises:
        KD3Error: data, teachers, device or disk space are missing, and nothing was begun; or runs failed.
        KeyboardInterrupt: interrupted; the same command resumes.
    """
    pairs = chosen(config.table, config.only)
    compute = resolve(config.device, config.precision)
    if config.plan:
        return plan_table(pairs, config, compute)
    check_given(pairs, config)
    data = {name: prepared(name, Path(config.data) / name) for name in data_sets(pairs, config)}
    check_disk(pairs, config)
    done: dict[str, Any] = {}
    table = Reproduced(Path(config.out), "", {})
    for number, pair in enumerate(pairs, 1):
        console.say(f"pair {number} of {len(pairs)}: {pair.name}")
        teacher = teacher_of(pair, data[pair.dataset], config)
        result = study.run(study_config(pair, config, str(teacher)))
        done[pair.name] = _outcome(pair, result)
        table = _written(config, pairs, done)
    return table


def _outcome(pair: Pair, result: study.Study) -> dict[str, Any]:
    rows = {line["row"]: line["measures"].get("accuracy") for line in result.to_dict()["table"]}
    summaries = sorted(result.folder.glob("runs/*/summary.json"))
    known = [json.loads(path.read_text(encoding="utf-8")).get("teacher_accuracy") for path in summaries]
    return {
        "teacher": next((value for value in known if value is not None), None),
        "rows": rows,
        "published": dict(pair.published),
    }


def _written(config: ReproduceConfig, pairs: list[Pair], done: Mapping[str, Any]) -> Reproduced:
    """Write the page and the figures of finished pairs, and return them."""
    found = [pair for pair in pairs if pair.name in done]
    names = list(dict.fromkeys(name for outcome in done.values() for name in outcome["rows"]))
    published = list(dict.fromkeys(name for outcome in done.values() for name in outcome["published"]))
    head = ["", *(f"{DATASETS[pair.dataset].title}, {pair.teacher} → {pair.student}" for pair in found)]
    teachers = [done[pair.name]["teacher"] for pair in found]
    rows = [["teacher", *("" if value is None else f"{value:.2f}" for value in teachers)]]
    rows += [[name, *(_shown(done[pair.name]["rows"].get(name)) for pair in found)] for name in names]
    rows += [
        [f"published: {name}", *(f"{done[pair.name]['published'].get(name, '')}" for pair in found)]
        for name in published
    ]
    cells = [[markdown.escaped(cell) for cell in row] for row in [head, *rows]]
    title = TABLES[config.table].title
    page = f"# {title}\n\nCommand: {markdown.code(_command(config))}.\n\n{markdown.table(cells)}\n\n{_EXPLAINED}\n"
    folder = Path(config.out)
    write_text(folder / PAGE, page)
    write_json(folder / JSON, dict(done))
    return Reproduced(folder, page, dict(done))


def _shown(measure: Mapping[str, Any] | None) -> str:
    return "" if measure is None else str(Spread(**measure))


def _command(config: ReproduceConfig) -> str:
    words = ["kd3", "reproduce", config.table]
    for name, field in ReproduceConfig.model_fields.items():
        value = getattr(config, name)
        if name not in ("table", "plan") and value != field.default:
            between = ";" if name == "rows" else ","
            shown = between.join(map(str, value)) if isinstance(value, list) else str(value)
            words += [f"--{name.replace('_', '-')}", shown]
    return shlex.join(words)
