"""Names in YAML exactly as written: `no` is a class, not false, and `010` is not eight."""

from __future__ import annotations

import yaml

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
