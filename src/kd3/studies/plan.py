"""Plan of a study: from its file to its runs. Free of torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from kd3.config.distill import DEFAULT_METHOD, DistillConfig, of_method, preset_values
from kd3.config.published import studies
from kd3.config.settings import Count, Settings, build, merge, read_yaml
from kd3.runtime.errors import KD3Error, unknown_name

CRAWL = "crawl"
GIVEN = ("crawl", "original", "other")  # pools given by the user; the study derives the others from them


class PoolRecipe(Settings):
    """Derivation of a pool of the study from another one; see `kd3.pool.derive_pool`."""

    source: str = Field(CRAWL, description="the pool it is made from")
    share: float = Field(1.0, gt=0, le=1)
    change: str | None = None
    strength: float = Field(0.0, ge=0)
    without_classes: int | list[str] = Field(
        0, description="classes left out, as the teacher predicts: names or how many"
    )
    mixed_with: str | None = Field(None, description="pool whose images replace a part")
    mixed_share: float = Field(0.0, ge=0, le=1)


class Row(Settings):
    """A line of the table: settings, a pool, seeds. With `vary` or `vary_pool`, one line for each value."""

    name: str = Field(min_length=1)
    settings: dict[str, Any] = Field({}, description="as in `kd3 distill --config`; a preset gives all but the budget")
    pool: str | PoolRecipe = CRAWL
    seeds: list[int] | None = None
    seeds_at_ends: list[int] | None = Field(None, description="of the first and the last value of `vary`")
    series: str | None = Field(None, description="what its points belong to in a figure")
    x: float | None = Field(None, description="its place on the dial")
    vary: dict[str, list[Any]] = Field({}, description="a setting by its dotted name, and its values")
    vary_pool: dict[str, list[Any]] = Field({}, description="a field of the pool's recipe, and its values")

    @model_validator(mode="after")
    def _one_dial(self) -> Row:
        if len(self.vary) + len(self.vary_pool) > 1:
            raise ValueError("vary and vary_pool take one name in all")
        if "pool" in self.settings or "out" in self.settings or "seed" in self.settings:
            raise ValueError("pool and seeds stand beside 'settings', not in it, and the study chooses 'out'")
        return self


class StudyFile(Settings):
    """A study file."""

    title: str
    about: str = ""
    images: Count = Field(200_000, ge=1, description="training images of each run: the same for all")
    epochs: float | None = Field(None, gt=0, description="the budget in epochs instead, as papers give it")
    seeds: list[int] = Field([0, 1, 2], min_length=1)
    common: dict[str, Any] = Field({}, description="settings of every run, as in `kd3 distill --config`")
    given: list[str] = Field(
        [], description="pools besides crawl, original and other that the user may give, as --other NAME=POOL"
    )
    pools: dict[str, PoolRecipe] = Field({})
    changed_tests: dict[str, tuple[str, float]] = Field(
        {}, description="name: [change, strength] of the labelled images"
    )
    measure_shift: bool = Field(False, description="measure each pool's distance as `kd3 shift` does")
    dial: str | None = Field(None, description="what x is, for figures")
    rows: list[Row] = Field(min_length=1)

    @model_validator(mode="after")
    def _own_names(self) -> StudyFile:
        for name in self.pools:
            if name in self.given_names:
                raise ValueError(f"{name!r} is the name of a pool that the user gives; call it otherwise")
        return self

    @model_validator(mode="after")
    def _one_budget(self) -> StudyFile:
        if self.epochs is not None and "images" in self.model_fields_set:
            raise ValueError("give the budget as images or as epochs, not both")
        return self

    @property
    def given_names(self) -> list[str]:
        """The names of pools that the user may give."""
        return [*GIVEN, *self.given]


@dataclass(frozen=True)
class Cell:
    """One run of a study."""

    row: str
    seed: int
    pool: str  # a given one's name, or the name of a recipe
    settings: dict[str, Any] = field(hash=False)
    series: str = ""
    x: float | None = None

    @property
    def name(self) -> str:
        """The name of its run folder."""
        return f"{slug(self.row)}-seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """All runs of a study, in order, and the pools to be made."""

    study: StudyFile
    cells: list[Cell]
    recipes: dict[str, PoolRecipe]
    left_out: list[str]  # rows that need a missing pool

    @property
    def rows(self) -> list[str]:
        """The table's lines, in order."""
        return list(dict.fromkeys(cell.row for cell in self.cells))


def read_study(named: str) -> StudyFile:
    """Return a study by the name of one that comes with kd3, or by its file.

    Raises:
        KD3Error: there is none, or something in it is unknown or out of range.
    """
    if named.endswith((".yaml", ".yml")):
        return build(StudyFile, read_yaml(Path(named), what="study"), where=named)
    if named not in studies():
        raise KD3Error(f"{unknown_name('study', named, studies())}; a file of your own ends in .yaml")
    with resources.as_file(resources.files("kd3") / "studies" / f"{named}.yaml") as path:
        return build(StudyFile, read_yaml(path, what="study"), where=named)


def plan(study: StudyFile, given: Mapping[str, Any], pools: Sequence[str], *, only: Sequence[str] = ()) -> Plan:
    """Return the runs of a study.

    The first seed of every row comes before the second of any, so that an early table has all rows.

    Args:
        given: settings from the command line, which win over the file's `common`.
        pools: names of the given pools; rows that need another are left out.
        only: names of rows to run; empty for all.

    Raises:
        KD3Error: a row's settings are wrong, two rows have one name, a pool is unknown, a budget differs.
    """
    recipes = dict(study.pools)
    for name in pools:
        if name not in study.given_names:
            raise KD3Error(f"{unknown_name('pool', name, study.given_names)}: no row of this study has a use for it")
    lines = [line for row in study.rows for line in _lines(row, recipes)]
    _check_names(lines, only)
    chosen = [line for line in lines if not only or line.name in only or line.series in only]
    present, left_out = [], []
    for line in chosen:
        assert isinstance(line.pool, str)
        needed = {name for name in _chain(line.pool, recipes, study.given_names) if name in study.given_names}
        (left_out.append(line.name) if needed - set(pools) else present.append(line))
    if not present:
        raise KD3Error(f"no row of the study can run: all need a pool that was not given ({', '.join(left_out)})")
    turns = max(len(line.seeds or study.seeds) for line in present)
    cells = []
    for turn in range(turns):
        for line in present:
            seeds = line.seeds or study.seeds
            if turn < len(seeds):
                assert isinstance(line.pool, str)
                settings = _settings(study, line, given, seeds[turn])
                cells.append(Cell(line.name, seeds[turn], line.pool, settings, line.series or line.name, line.x))
    used = {name for line in present for name in _chain(str(line.pool), recipes, study.given_names)}
    return Plan(study, cells, {name: recipe for name, recipe in recipes.items() if name in used}, left_out)


def _lines(row: Row, recipes: dict[str, PoolRecipe]) -> Iterator[Row]:
    """Yield a row for each value of its varied setting; `recipes` gets the names of the needed pools."""
    if isinstance(row.pool, PoolRecipe) and not row.vary_pool:
        row = row.model_copy(update={"pool": _named(row.pool, recipes)})
    if not row.vary and not row.vary_pool:
        yield row
        return
    ((name, values),) = (row.vary or row.vary_pool).items()
    for place, value in enumerate(values):
        at_end = place in (0, len(values) - 1)
        update: dict[str, Any] = {
            "name": f"{row.name}, {name.rpartition('.')[2]} {_shown(value)}",
            "series": row.series or row.name,
            "x": float(value) if isinstance(value, (int, float)) else float(place),
            "seeds": (row.seeds_at_ends if at_end else None) or row.seeds,
            "vary": {},
            "vary_pool": {},
        }
        if row.vary:
            update["settings"] = merge(row.settings, _nest(name, value))
        else:
            base = row.pool if isinstance(row.pool, PoolRecipe) else PoolRecipe(source=row.pool)
            values_of = {**base.model_dump(exclude_unset=True), name: value}
            update["pool"] = _named(build(PoolRecipe, values_of, where=f"row {row.name!r}"), recipes)
        yield row.model_copy(update=update)


def _settings(study: StudyFile, line: Row, given: Mapping[str, Any], seed: int) -> dict[str, Any]:
    own = {name: value for name, value in line.settings.items() if name != "preset"}
    # A flag's default is not a request: a preset has a precision of its own.
    given = {name: value for name, value in given.items() if (name, value) != ("precision", "auto")}
    preset = preset_values(str(line.settings["preset"])) if "preset" in line.settings else {}
    # Options in `common` and of a preset are for the rows of their method; those of a row itself must be its method's.
    method = str(merge(study.common, preset, given, own).get("method", DEFAULT_METHOD))
    common, preset = of_method(study.common, method), _without_budget(of_method(preset, method))
    budget = _budget(study, given)
    values = merge(common, {"train": budget}, preset, _without_budget(given), own, {"seed": seed})
    place = {"teacher": "-", "student": "-", "pool": "-", "out": "-"}
    wanted = build(DistillConfig, merge(place, {"train": {"batch_size": 2, **budget}}), where="study").train
    config = build(DistillConfig, merge(place, values), where=f"row {line.name!r} of the study")
    if (config.train.images, config.train.epochs) != (wanted.images, wanted.epochs):
        raise KD3Error(
            f"row {line.name!r} of the study has a budget of its own; rows are compared at an equal one, which is set "
            f"once, as 'images' or 'epochs' of the study or by --images"
        )
    return values


def _budget(study: StudyFile, given: Mapping[str, Any]) -> dict[str, Any]:
    images = given.get("train", {}).get("images")
    if images is None and study.epochs is not None:
        return {"epochs": study.epochs}
    return {"images": study.images if images is None else images}


def _without_budget(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without the number of training images or epochs."""
    train = values.get("train")
    if not isinstance(train, Mapping):
        return dict(values)
    return {**values, "train": {name: value for name, value in train.items() if name not in ("images", "epochs")}}


def _check_names(lines: Sequence[Row], only: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for line in lines:
        other = seen.setdefault(slug(line.name), line.name)
        if other is not line.name:
            raise KD3Error(f"two rows of the study would share a folder: {other!r} and {line.name!r}; rename one")
    known = {line.name for line in lines} | {line.series for line in lines if line.series}
    for name in only:
        if name not in known:
            raise unknown_name("row", name, sorted(known))


def _named(recipe: PoolRecipe, recipes: dict[str, PoolRecipe]) -> str:
    """Return the name of a recipe among those of the study, under which it is added if it is new."""
    for name, known in recipes.items():
        if known == recipe:
            return name
    values = recipe.model_dump(exclude_defaults=True)
    if not values.keys() - {"source"}:
        return recipe.source
    name = slug("-".join(f"{key} {_shown(value)}" for key, value in values.items()))
    recipes[name] = recipe
    return name


def _chain(
    pool: str, recipes: Mapping[str, PoolRecipe], given: Sequence[str], seen: tuple[str, ...] = ()
) -> Iterator[str]:
    """Yield a pool and all that it is made from."""
    if pool in seen:
        raise KD3Error(f"pool {pool!r} of the study is made from itself")
    yield pool
    if pool in given:
        return
    if pool not in recipes:
        raise unknown_name("pool of the study", pool, [*given, *recipes])
    recipe = recipes[pool]
    for source in (recipe.source, recipe.mixed_with):
        if source is not None:
            yield from _chain(source, recipes, given, (*seen, pool))


def _nest(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    nested: dict[str, Any] = value
    return nested


def _shown(value: Any) -> str:
    return " and ".join(map(str, value)) if isinstance(value, list) else str(value)


def slug(name: str) -> str:
    """Convert a name to a folder name.

    >>> slug("KD3, tau 0.95")
    'kd3-tau-0.95'
    """
    return re.sub(r"[^a-z0-9.+]+", "-", name.lower()).strip("-.") or "row"
