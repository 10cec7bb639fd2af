"""Base of all settings, kinds that several commands share, and a mapping's conversion to a checked object."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Set
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, TypeVar

import pydantic
import yaml
from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema

from kd3.config.yaml_text import load_yaml
from kd3.runtime import console
from kd3.runtime.errors import KD3Error, quoted

# Old names that are still read -> present ones. CONTRIBUTING has the deprecation policy.
RENAMED = {"looks": "evals"}
_noted: set[str] = set()


def present_name(name: str) -> str:
    """Return the present name of a renamed setting, with a note once in a process; other names as they are."""
    if name in RENAMED and name not in _noted:
        _noted.add(name)
        console.info(f"{name} is now called {RENAMED[name]}; the old name is read until version 0.3")
    return RENAMED.get(name, name)


def renamed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return one layer of settings with present names for old ones.

    Raises:
        KD3Error: it holds a setting under both names.
    """
    for old in RENAMED.keys() & values.keys():
        if RENAMED[old] in values:
            raise KD3Error(f"{old} is the old name of {RENAMED[old]}; give one of them")
    return {present_name(name): value for name, value in values.items()}


class Settings(pydantic.BaseModel):
    """A frozen group of settings; unknown names are refused, old ones renamed."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _under_present_names(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or not cls.model_fields.keys() & set(RENAMED.values()):
            return values
        try:
            return renamed(values)
        except KD3Error as problem:
            raise ValueError(str(problem)) from None


def parse_count(value: Any) -> Any:
    """Read a count as people write it: 200000, 200_000, 200k, 1.5M, 1e6.

    >>> parse_count("200k"), parse_count("1.5M"), parse_count(7)
    (200000, 1500000, 7)
    """
    if isinstance(value, bool):
        raise ValueError("must be a number such as 200000, 200k or 1.5M, not true or false")
    if isinstance(value, str):
        if re.fullmatch(r"[0-9.]+e[0-9]{1,2}", value.strip().lower()):
            return round(float(value))
        match = re.fullmatch(r"([0-9][0-9_]*\.?[0-9]*)\s*([kKmM]?)", value.strip())
        if match:
            scale = {"": 1, "k": 1_000, "m": 1_000_000}[match[2].lower()]
            return round(float(match[1].replace("_", "")) * scale)
        raise ValueError(f"must be a number such as 200000, 200k or 1.5M; got {value!r}")
    return value


# In a file 200k is as good as 200000.
Count = Annotated[
    int,
    BeforeValidator(parse_count),
    WithJsonSchema(
        {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": r"^[0-9][0-9_]*\.?[0-9]*(e[0-9]+|\s*[kKmM])?$"}]}
    ),
]

S = TypeVar("S", bound=Settings)
COMMAND_LINE = "command line"  # where settings are flags
BARE_GROUPS = ("train",)  # whose flags carry no prefix: --lr, not --train.lr


def build(model: type[S], values: Mapping[str, Any], *, where: str, positional: tuple[str, ...] = ()) -> S:
    """Return `values` as checked settings; a path object is read as its text.

    Raises:
        KD3Error: the first error: an unknown name (with the nearest known one), a
            wrong type, a value out of range; `where` is its file or command. A setting of `COMMAND_LINE` is
            called by its flag, or as in the usage if it is among `positional`.
    """
    try:
        return model.model_validate(_paths_as_text(values))
    except pydantic.ValidationError as problem:
        raise KD3Error(_sentence(model, problem, where, positional)) from None


def _paths_as_text(value: Any) -> Any:
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        return {name: _paths_as_text(inner) for name, inner in value.items()}
    return [_paths_as_text(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _flag(path: list[str], positional: tuple[str, ...]) -> str:
    """Return the words of the command line for a setting, which may be an item of a list."""
    names = [part for part in path if not part.isdigit()]
    if names[0] in positional:
        return names[0].upper()
    return "--" + ".".join(names[1:] if names[0] in BARE_GROUPS else names).replace("_", "-")


def _sentence(model: type[Settings], problem: pydantic.ValidationError, where: str, positional: tuple[str, ...]) -> str:
    # An unknown name may explain a missing one, so report it first.
    errors = sorted(problem.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first = errors[0]
    path = [str(part) for part in first["loc"]]
    name = ".".join(path)
    if first["type"] == "extra_forbidden":
        known = _known_names(model, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        shown = ", ".join(name for name in known.values() if "." not in name)
        question = f"did you mean {known[near[0]]!r}?" if near else f"known: {shown}"
        return f"unknown setting {name!r} ({where}); {question}"
    called, place = repr(name), f"{name} ({where})"
    if where == COMMAND_LINE and path:
        called = place = _flag(path, positional)
    if first["type"] == "missing":
        return f"{called} is missing" + (f" ({where})" if called != place else "")
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input ").partition(", unable to parse")[0]
    if first["type"] == "value_error":
        return f"{place}: {message}" if name else f"{message} ({where})"
    return f"{place}: {message}; got {quoted(first.get('input'))}"


def _known_names(model: type[pydantic.BaseModel], path: list[str]) -> dict[str, str]:
    """Return the names that could stand at a place, also those that belong into a group below it."""
    for part in path:
        inner = group_of(model, part)
        if inner is None:
            return {}
        model = inner
    known: dict[str, str] = {}
    for name in sorted(model.model_fields):
        group = group_of(model, name)
        known |= {leaf: f"{name}.{leaf}" for leaf in group.model_fields} if group else {}
    return known | {name: name for name in sorted(model.model_fields)}


def group_of(model: type[pydantic.BaseModel], name: str) -> type[pydantic.BaseModel] | None:
    """Return the settings class that a field holds; None for a plain or unknown field."""
    field = model.model_fields.get(name)
    inner = field.annotation if field else None
    return inner if isinstance(inner, type) and issubclass(inner, pydantic.BaseModel) else None


def read_yaml(path: Path, *, what: str) -> dict[str, Any]:
    """Return a YAML file's mapping.

    Raises:
        KD3Error: it is no mapping; or as `load_yaml`.
    """
    values = load_yaml(path, what=what)
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise KD3Error(f"{what} {path} must hold 'name: value' lines, one a setting")
    return values


def to_yaml(settings: Settings, *, without: Set[str] = frozenset()) -> str:
    """Return settings as YAML that `read_yaml` and `build` read back to equal ones; without those in `without`."""
    values = settings.model_dump(mode="json", exclude_none=True, exclude=set(without))
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None)


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested mappings laid over one another, later ones winning; each layer's old names become present ones.

    >>> merge({"train": {"lr": 1, "seed": 0}}, {"train": {"lr": 2}})
    {'train': {'lr': 2, 'seed': 0}}
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in renamed(layer).items():
            below = merged.get(key)
            both = isinstance(below, Mapping) and isinstance(value, Mapping)
            merged[key] = merge(below, value) if both else value  # type: ignore[arg-type]
    return merged


Engine = Literal["local", "ray"]  # place of the work
Precision = Literal["auto", "32", "bf16", "16"]
TRUST_CODE = (
    "run the code that the folder of a student or teacher contains or names (net.py:build, package.module:build); only "
    "for authors whom you trust"
)
WORKERS = (
    "decoding processes, in bounded memory and time (default: one per core; 0: this process decodes, without bounds: "
    "for your own images)"
)

# Permissions for lists and tables among a command's images. Every command that reads images has both.
READING = ("trust_entries", "private_hosts")
TrustEntries = Annotated[
    bool,
    Field(
        description="lists and tables may name files outside their folder, any protocol that fsspec knows, and servers "
        "of this machine and of private networks; for lists of your own"
    ),
]
PrivateHosts = Annotated[
    bool,
    Field(
        description="lists and tables may name servers of this machine and of private networks (10.0.0.0/8, "
        "192.168.0.0/16, ...); the servers of the sources themselves always may"
    ),
]


def split_commas(value: Any) -> Any:
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


def one_or_many(value: Any) -> Any:
    """Read one value as a list of it, since `keep_out="test"` is natural in Python."""
    return [value] if isinstance(value, str) else value


def place_or_name(value: Any) -> Any:
    """Read the place or the name of an output: text of digits is a place.

    >>> place_or_name("1"), place_or_name("logits"), place_or_name(None)
    (1, 'logits', None)
    """
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def split_semicolons(value: Any) -> Any:
    return [part.strip() for part in value.split(";") if part.strip()] if isinstance(value, str) else value


def read_recall(value: Any) -> Any:
    """Read the number of images to recall, auto, or off, which YAML reads as false.

    >>> read_recall("auto"), read_recall(False), read_recall("1k")
    ('auto', 'off', 1000)
    """
    if value is None or value == "off":
        return value
    if value is False:
        return "off"
    try:
        count = value if value == "auto" else parse_count(value)
    except ValueError:
        count = None
    if count == "auto" or (isinstance(count, int) and count >= LEAST_RECALLED):
        return count
    raise ValueError(f"must be auto, off, or a number of images that is at least {LEAST_RECALLED}; got {value!r}")


LEAST_BATCH = 2  # batch norms need more than one image


def read_batch_size(value: Any) -> Any:
    """Read the number of images per step, or auto.

    >>> read_batch_size("auto"), read_batch_size("128"), read_batch_size(None)
    ('auto', 128, None)
    """
    if value is None or value == "auto":
        return value
    count = value
    if (isinstance(value, float) and value.is_integer()) or (isinstance(value, str) and value.isdecimal()):
        count = int(value)
    if isinstance(count, int) and count >= LEAST_BATCH:
        return count
    raise ValueError(f"must be auto, or a number of images that is at least {LEAST_BATCH}; got {quoted(value)}")


BatchSize = Annotated[
    Literal["auto"] | int,
    BeforeValidator(read_batch_size),
    WithJsonSchema({"anyOf": [{"enum": ["auto"]}, {"type": "integer", "minimum": LEAST_BATCH}]}),
]
LEAST_RECALLED = 16  # one half estimates, the other evaluates, with at least 8 images
Recall = Annotated[
    Literal["auto", "off"] | int,
    BeforeValidator(read_recall),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": ["auto", "off"]},
                {"type": "integer", "minimum": LEAST_RECALLED},
                {"type": "string", "pattern": r"^[0-9][0-9_]*\.?[0-9]*(e[0-9]+|\s*[kKmM])?$"},
            ]
        }
    ),
]
