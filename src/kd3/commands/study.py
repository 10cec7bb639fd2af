"""`kd3 study`: many runs for one question, with a table and a figure."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from kd3.commands.arguments import as_setting
from kd3.config.commands import StudyConfig
from kd3.config.distill import DistillConfig
from kd3.config.settings import READING, build
from kd3.evaluation.compatibility import check_several_classes, fitted
from kd3.models.load_teacher import is_named, load_teacher
from kd3.models.teacher import Teacher
from kd3.pool import ImagePool
from kd3.runtime import console
from kd3.runtime.compute import Compute, resolve
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import exclusive, replacing, write_json, write_text
from kd3.runtime.run_folder import RunFolder
from kd3.runtime.text import code, escaped
from kd3.sources.trust import is_remote, with_permissions
from kd3.studies.known_runs import KnownRuns
from kd3.studies.plan import Cell, Plan, StudyFile, plan, read_study
from kd3.studies.pools import ChangedTests, PoolDistance, check_given, correlations, make_pools, pool_distances
from kd3.studies.pools import page as distances_page
from kd3.studies.runs import Failure, StudyFolder, check_finished, made_for, pending, run_all, run_all_on_ray
from kd3.studies.table import RunResult, as_csv, as_json, can_draw, draw, lines, markdown, read_run

PLACES = ("out", "teacher", "pool", "original", "eval_data")
OF_TRAINING = ("images", "fixed_views", "evals", "flip")  # settings of every run that the command line may change
TABLE, CSV, JSON, FIGURE = "table.md", "table.csv", "results.json", "figure.png"


@dataclass(frozen=True)
class Study:
    """A study with the results so far."""

    folder: Path
    page: str
    values: dict[str, Any]  # "table": a line for each row, "runs": every run, and the pools' distances; or "planned"

    def to_dict(self) -> dict[str, Any]:
        """Return the table and every run."""
        return self.values

    def __str__(self) -> str:
        if "table" not in self.values:  # a dry run
            return self.page
        return f"{self.page}\nwritten to {self.folder}: {TABLE}, {CSV}, {JSON}" + (f", {FIGURE}" if can_draw() else "")


@console.quietable
def study(named: str | Path, out: str | Path, **settings: Any) -> Study:
    """Run a study and return its table; finished runs are never repeated.

    `settings` are `quiet=True` and those of `kd3 study --help`: teacher, student, pool, original, other, eval_data,
    images, fixed_views, evals, flip, seeds, rows, known, jobs, devices, device, precision.

    Raises:
        KD3Error: something in the study is wrong, and no run has begun; or runs failed, and the table holds the others.
        KeyboardInterrupt: interrupted; the same call resumes.
    """
    names = {
        "study": as_setting(named, what="kd3.study: study", allowed="a name or a file"),
        "out": as_setting(out, what="kd3.study: out", allowed="a folder"),
    }
    return run(build(StudyConfig, {**names, **settings}, where="kd3.study"))


@with_permissions
def run(config: StudyConfig) -> Study:
    """Run the command line's settings."""
    named = with_seeds(read_study(config.study), config)
    given = {name: ImagePool.open(Path(path).absolute()) for name, path in _given_pools(config).items()}
    everything = plan(named, given_settings(config), list(given))
    planned = plan(named, given_settings(config), list(given), only=config.rows)
    for row in planned.left_out:
        console.warn(f"row {row!r} is left out: it needs a pool that was not given (--original or --other)")
    if config.dry_run:
        return _listed(planned, everything, config)
    teacher = load_teacher(config.teacher)
    check_given(given, teacher)
    compute = resolve(config.device, config.precision)
    study_folder = StudyFolder(Path(config.out))
    _make(study_folder)
    with exclusive(study_folder.lock, what=f"study {study_folder.path}"):
        return _run(planned, everything, config, study_folder, given, teacher, compute)


def _listed(planned: Plan, everything: Plan, config: StudyConfig) -> Study:
    """Return the runs that a study would make, and the state of each."""
    study_folder = StudyFolder(Path(config.out))
    makers = made_for(study_folder, everything.cells, planned.cells)
    words = {"absent": "to be made", "interrupted": "interrupted, will continue", "finished": "finished"}
    rows: list[dict[str, Any]] = []
    for cell in planned.cells:
        made = makers[cell.name]
        state = RunFolder(study_folder.run(made)).state()
        rows.append({"run": cell.name, "row": cell.row, "seed": cell.seed, "state": state, "made_as": made.name})
    wide = max((len(row["run"]) for row in rows), default=0)
    lines_of_runs = [
        f"  {row['run']:<{wide}}  "
        + (words[row["state"]] if row["made_as"] == row["run"] else f"the same as {row['made_as']}")
        for row in rows
    ]
    page = "\n".join([_announcement(planned, config, makers), *lines_of_runs])
    return Study(study_folder.path, page, {"planned": rows})


def _run(
    planned: Plan,
    everything: Plan,
    config: StudyConfig,
    study_folder: StudyFolder,
    given: Mapping[str, ImagePool],
    teacher: Teacher,
    compute: Compute,
) -> Study:
    pools = make_pools(study_folder.pools, planned.recipes, given, teacher, compute)
    for name in dict.fromkeys(cell.pool for cell in planned.cells):
        check_several_classes(*fitted(teacher, pools[name]), compute)
    # The table also holds earlier runs of the other rows, with their pools.
    place = {
        name: pools[name].path if name in pools else study_folder.pools / name for name in [*everything.recipes, *given]
    }
    known = [(cell, {**cell.settings, "pool": str(place[cell.pool])}) for cell in everything.cells]
    _check_inputs(study_folder, everything.cells, pools, teacher)
    names = {cell.name for cell in planned.cells}
    cells = [(cell, settings) for cell, settings in known if cell.name in names]
    changed = ChangedTests(planned.study.changed_tests, config.eval_data, study_folder, compute)
    makers = made_for(study_folder, everything.cells, planned.cells)
    known_runs = KnownRuns(config.known, changed.tests)
    records, refused = _recorded(known_runs, known, pools, teacher, tests=changed.tests)
    missing = [(cell, settings) for cell, settings in pending(study_folder, cells) if cell.name not in records]
    todo = [(cell, settings) for cell, settings in missing if makers[cell.name] is cell]
    for why in dict.fromkeys(refused.values()):
        anew = [cell.name for cell, _ in todo if refused.get(cell.name) == why]
        if anew:
            console.warn(f"run anew, since {why}: {', '.join(anew)}")
    distances = {}
    if planned.study.measure_shift:
        used = {cell.pool: pools[cell.pool] for cell in planned.cells}
        recorded = partial(known_runs.distance, teacher.fingerprint())
        distances = pool_distances(study_folder.distances, used, teacher, compute, recorded)
    writer = _Writer(everything, config, study_folder, known, records, makers, changed, distances)
    answers = Counter(makers[cell.name].name for cell, _ in missing)
    done = len(cells) - len(missing)
    console.info(_announcement(planned, config, makers) + (f"; {done} of them are finished" if done else ""))
    with console.progress("study", len(cells), "runs", done=done) as bar:

        def finished(cell: Cell) -> None:
            bar.advance(answers[cell.name], cell.name)
            writer.write()

        if config.engine == "ray":
            failures = run_all_on_ray(study_folder, todo, device=config.device, finished=finished)
        else:
            devices = config.devices or [config.device]
            failures = run_all(study_folder, todo, devices=devices, jobs=config.jobs, finished=finished)
    study = writer.write()
    if failures:
        raise KD3Error(_failed(failures, len(cells), study_folder))
    return study


def _check_inputs(
    study_folder: StudyFolder, cells: Iterable[Cell], pools: Mapping[str, ImagePool], teacher: Teacher
) -> None:
    """Refuse a study whose teacher or pools have changed at their places since its runs were finished."""
    for cell in cells:
        folder = RunFolder(study_folder.run(cell))
        if folder.state() == "finished":
            pool = {"pool": pools[cell.pool].content_hash} if cell.pool in pools else {}
            folder.check_origin(teacher=teacher.fingerprint(), **pool)


@dataclass(frozen=True)
class _Writer:
    """Writes the results so far, on each call."""

    planned: Plan
    config: StudyConfig
    study_folder: StudyFolder
    cells: Sequence[tuple[Cell, Mapping[str, Any]]]
    records: Mapping[str, RunResult]  # of runs from elsewhere, by folder name
    makers: Mapping[str, Cell]  # the run shared by each cell, by folder name
    changed: ChangedTests
    distances: Mapping[str, PoolDistance]

    def write(self) -> Study:
        """Write page, tables and figure and return them."""
        planned, config, study_folder = self.planned, self.config, self.study_folder
        results = [result for cell, settings in self.cells if (result := self._result(cell, settings)) is not None]
        table = lines(results, planned.rows)
        machines = list(dict.fromkeys(result.machine for result in results))
        about = (
            f"{len(results)} of {len(self.cells)} runs, {_budget(planned, config, results)} each, "
            f"{config.jobs} at a time. Command: {code(_command(config))}. "
            f"Made on: {escaped('; '.join(machines)) or 'nothing yet'}."
        )
        notes = [f"Left out, since a pool was not given: {', '.join(planned.left_out)}."] if planned.left_out else []
        found = correlations(results, self.distances)
        page = markdown(planned, table, about=about, notes=notes + distances_page(self.distances, found))
        write_text(study_folder.path / TABLE, page)
        write_text(study_folder.path / CSV, as_csv(table))
        values = as_json(table, results, self.changed.tests)
        values["distances"] = {pool: asdict(distance) for pool, distance in self.distances.items()}
        values["correlations"] = [asdict(correlation) for correlation in found]
        write_json(study_folder.path / JSON, values)
        if table and can_draw():
            with replacing(study_folder.path / FIGURE) as path:
                draw(path, table, title=planned.study.title, dial=planned.study.dial)
        return Study(study_folder.path, page, values)

    def _result(self, cell: Cell, settings: Mapping[str, Any]) -> RunResult | None:
        made = self.makers[cell.name]
        if check_finished(self.study_folder, made, settings):
            result = read_run(self.study_folder, made, self.changed.accuracy(made))
            return replace(result, row=cell.row, series=cell.series, x=cell.x)
        return self.records.get(cell.name)


def _recorded(
    known_runs: KnownRuns,
    cells: Sequence[tuple[Cell, Mapping[str, Any]]],
    pools: Mapping[str, ImagePool],
    teacher: Teacher,
    *,
    tests: Iterable[str],
) -> tuple[dict[str, RunResult], dict[str, str]]:
    """Return the usable runs of --known, and the reasons against others, by folder name here.

    A run without results on all changed `tests` is repeated, since its student is missing.
    """
    found, refused = {}, {}
    for cell, settings in cells:
        if cell.pool not in pools:
            continue  # do not make a pool of other rows just to compare it
        wanted = build(DistillConfig, {**settings, "out": "-"}, where=f"row {cell.row!r} of the study")
        pool = pools[cell.pool].content_hash
        result, why_not = known_runs.find(cell, wanted, teacher=teacher.fingerprint(), pool=pool)
        if result is not None and set(tests) <= set(result.changed):
            found[cell.name] = result
        elif why_not:
            refused[cell.name] = why_not
    return found, refused


def _given_pools(config: StudyConfig) -> dict[str, str]:
    found = {"crawl": config.pool} | ({} if config.original is None else {"original": config.original})
    for words in config.other:
        name, _, path = words.rpartition("=")
        if (name or "other") in found:
            raise KD3Error(f"--other names the pool {name or 'other'!r} twice, or one that has a flag of its own")
        found[name or "other"] = path
    return found


def given_settings(config: StudyConfig) -> dict[str, Any]:
    """Return the command line's settings for every run."""
    given: dict[str, Any] = {"teacher": _absolute(config.teacher), "student": config.student, "pool": "-"}
    if config.eval_data is not None:
        given["eval_data"] = _absolute(config.eval_data)
    given |= {name: True for name in READING if getattr(config, name)}
    train = {name: getattr(config, name) for name in OF_TRAINING if getattr(config, name) is not None}
    if train:
        given["train"] = train
    return {**given, "device": config.device, "precision": config.precision}


def with_seeds(study: StudyFile, config: StudyConfig) -> StudyFile:
    """Return a study with the command line's seeds, if any, in every row."""
    if not config.seeds:
        return study
    rows = [row.model_copy(update={"seeds": None, "seeds_at_ends": None}) for row in study.rows]
    return study.model_copy(update={"seeds": config.seeds, "rows": rows})


def _make(study_folder: StudyFolder) -> None:
    try:
        known = {
            "runs",
            "pools",
            "settings",
            "logs",
            study_folder.distances.name,
            TABLE,
            CSV,
            JSON,
            FIGURE,
            study_folder.lock.name,
        }
        if study_folder.path.is_dir() and {entry.name for entry in study_folder.path.iterdir()} - known:
            raise KD3Error(f"{study_folder.path} is not empty and holds no study; choose another --out")
        study_folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise KD3Error(f"--out {study_folder.path} cannot be used: {problem.strerror}") from None


def _announcement(planned: Plan, config: StudyConfig, makers: Mapping[str, Cell]) -> str:
    same = len(planned.cells) - len({makers[cell.name].name for cell in planned.cells})
    once = f" ({same} the same as others, which are made once)" if same else ""
    return (
        f"study {planned.study.title!r}: {len(planned.rows)} rows, {len(planned.cells)} runs{once} of "
        f"{_budget(planned, config)}, {len(planned.recipes)} pools to make"
    )


def _budget(planned: Plan, config: StudyConfig, results: Sequence[RunResult] = ()) -> str:
    if planned.study.epochs is not None and config.images is None:
        return f"{planned.study.epochs:g} epochs"
    return f"{results[0].images if results else config.images or planned.study.images:,} training images"


def _failed(failures: Sequence[Failure], count: int, study_folder: StudyFolder) -> str:
    first = failures[0]
    return (
        f"{len(failures)} of {count} runs failed; {first.cell.name}: {first.why}. The others are in "
        f"{study_folder.path / TABLE}; mend this and repeat the command, which runs only the missing ones"
    )


def _command(config: StudyConfig) -> str:
    """Return the command that repeats the study from the same folder."""
    words = ["kd3", "study", _place(config.study)]
    for name, field in StudyConfig.model_fields.items():
        value = getattr(config, name)
        if name in ("study", "dry_run") or value == field.default:
            continue
        if name == "other":
            named = (words_of.rpartition("=") for words_of in value)
            value = [f"{head}{equals}{_place(path)}" for head, equals, path in named]
        elif name == "known":
            value = [_place(path) for path in value]
        elif name in PLACES:
            value = _place(value)
        if value is True:
            words.append(f"--{name.replace('_', '-')}")
            continue
        between = ";" if name == "rows" else ","
        shown = between.join(map(str, value)) if isinstance(value, list) else str(value)
        words += [f"--{name.replace('_', '-')}", shown]
    return shlex.join(words)


def _absolute(given: str) -> str:
    """Make a location independent of the working directory: absolute paths; URLs and library names unchanged."""
    return given if is_remote(given) or is_named(given) else str(Path(given).absolute())


def _place(given: str) -> str:
    """Return a path as it was given, or relative to the working directory if possible."""
    path = Path(given)
    return os.path.relpath(path) if path.is_absolute() and path.exists() else given
