"""Python's keyword arguments as the nested mapping of a configuration file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kd3.config.flags import BARE_GROUPS
from kd3.config.settings import Settings, group_of


def spread(model: type[Settings], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `lr=0.1` as `{"train": {"lr": 0.1}}`: the names are the command line's.

    Unknown names stay where they are and are refused, with the nearest one, when the settings are built.
    """
    nested: dict[str, Any] = {}
    for name, value in values.items():
        group = next((g for g in BARE_GROUPS if name not in model.model_fields and name in _fields(model, g)), None)
        if group is None:
            nested[name] = {**nested.get(name, {}), **value} if isinstance(value, Mapping) else value
        else:
            nested.setdefault(group, {})[name] = value
    return nested


def _fields(model: type[Settings], group: str) -> dict[str, Any]:
    inner = group_of(model, group)
    return dict(inner.model_fields) if inner else {}
