"""Common YAML read as data: of bounded size, without repeated names, and with names exactly as written."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from kd3.runtime.errors import KD3Error

NAMES = ("classes", "without_classes")  # lists of names
NAME = "name"
NOT_OURS = ("arch_args", "student_args")  # arguments of the user's own function
TEXT = "tag:yaml.org,2002:str"
NOTHING = "tag:yaml.org,2002:null"


def keep_names_as_written(node: yaml.Node) -> None:
    """Convert names below a node to text: the items of lists of classes, and `name: ...`.

    An empty item stays empty, so that a list with a gap is refused.
    """
    seen: set[int] = set()  # an alias may lead back
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            continue
        seen.add(id(node))
        if not isinstance(node, yaml.MappingNode):
            waiting += node.value
            continue
        for key, value in node.value:
            if key.value in NOT_OURS:
                continue
            waiting.append(value)
            if key.value in NAMES and isinstance(value, yaml.SequenceNode):
                for item in value.value:
                    _as_text(item)
            elif key.value == NAME:
                _as_text(value)


def _as_text(node: yaml.Node) -> None:
    if isinstance(node, yaml.ScalarNode) and not (node.tag == NOTHING and not node.value):
        node.tag = TEXT


MOST_BYTES = 16 << 20
MOST_VALUES = 200_000  # with expanded aliases; ten times ImageNet's 21,841 classes
DEEPEST = 100  # levels of nesting


def load_yaml(path: Path, *, what: str) -> Any:
    """Return the contents of a YAML file: mappings, lists, text, numbers, dates, None.

    Raises:
        KD3Error: it cannot be read, is not YAML, has a name twice in one mapping, or is too large, too deep, or grows
            beyond measure by its aliases.
    """
    try:
        with path.open("rb") as handle:
            data = handle.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise KD3Error(f"{what} {path} does not exist") from None
    except IsADirectoryError:
        raise KD3Error(f"{what} {path} is a folder; a YAML file is expected") from None
    except (OSError, ValueError) as problem:
        raise KD3Error(f"{what} {path} cannot be read: {getattr(problem, 'strerror', None) or problem}") from None
    if len(data) > MOST_BYTES:
        raise KD3Error(f"{what} {path} is larger than {MOST_BYTES >> 20} MiB, which no YAML of kd3 is")
    try:
        return yaml.load(data.decode("utf-8-sig"), _Loader)
    except _Refused as problem:
        raise KD3Error(f"{what} {path} {problem}") from None
    except RecursionError:
        raise KD3Error(f"{what} {path} {TOO_DEEP}") from None
    except (yaml.YAMLError, ValueError, TypeError) as problem:  # invalid dates; names that are lists
        raise KD3Error(f"{what} {path} is not valid YAML{_line(getattr(problem, 'problem_mark', None))}") from None


TOO_DEEP = f"is nested deeper than {DEEPEST} levels"


class _Refused(Exception):
    """Valid YAML that kd3 refuses; the message continues after the file's name."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with checks of the whole tree and names as text before construction."""

    # Levels are counted while they are read: PyYAML's time grows with their square.
    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        _check_depth(self.flow_level)
        super().fetch_flow_collection_start(TokenClass)

    def add_indent(self, column: int) -> bool:
        _check_depth(len(self.indents))
        return bool(super().add_indent(column))

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _weight(node, {}, 0) > MOST_VALUES:
            raise _Refused(f"stands for more than {MOST_VALUES:,} values; are its aliases (*name) meant?")
        if node is not None:
            keep_names_as_written(node)
        return node


def _weight(node: yaml.Node, known: dict[int, int | None], depth: int) -> int:
    """Return the number of values of a node with expanded aliases."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    weight = known.get(id(node), 0)
    if weight is None:
        raise _Refused(f"holds itself{_line(node.start_mark)}")
    if weight:
        return weight
    _check_depth(depth)
    known[id(node)] = None  # in progress
    if isinstance(node, yaml.MappingNode):
        _check_names(node)
        below = [part for pair in node.value for part in pair]
    else:
        below = node.value
    weight = 1 + sum(_weight(part, known, depth + 1) for part in below)
    known[id(node)] = weight
    return weight


def _check_depth(depth: int) -> None:
    if depth >= DEEPEST:
        raise _Refused(TOO_DEEP)


def _check_names(node: yaml.MappingNode) -> None:
    seen: set[Hashable] = set()
    for name, _ in node.value:
        if not isinstance(name, yaml.ScalarNode):
            continue
        if (name.tag, name.value) in seen:
            raise _Refused(f"has {name.value!r} twice{_line(name.start_mark)}")
        seen.add((name.tag, name.value))


def _line(mark: Any) -> str:
    return f" (line {mark.line + 1})" if mark is not None else ""
