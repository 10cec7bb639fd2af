"""`kd3 schema`: JSON schemas of configuration files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from kd3.config.commands import DistillConfig, SchemaConfig
from kd3.config.distill_layers import presets
from kd3.config.settings import Settings
from kd3.experiments.plan import StudyFile
from kd3.models.description import TeacherDescription

DIALECT = "https://json-schema.org/draft/2020-12/schema"  # as pydantic


@dataclass(frozen=True)
class Schema:
    """A JSON schema."""

    content: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return it."""
        return self.content

    def __str__(self) -> str:
        return json.dumps(self.content, indent=2, ensure_ascii=False)


def schema(file: str) -> dict[str, Any]:
    """Return the JSON schema of a kind of file: "distill", "teacher" or "study"."""
    if file == "distill":
        found = _of(DistillConfig, "Settings of kd3 distill, for --config; flags win over them")
        # Settings missing in the file may be flags.
        del found["required"]
        found["properties"]["preset"] = {"enum": presets(), "description": "named settings to start from"}
        return found
    if file == "teacher":
        found = _of(TeacherDescription, "A trained classifier: how to build it, its weights, what it expects to see")
        # A library may provide the others.
        found["required"] = ["arch"]
        return found
    return _of(StudyFile, "A study: rows of settings, run at an equal budget")


def run(config: SchemaConfig) -> Schema:
    """Run the command line's settings."""
    return Schema(schema(config.file))


def _of(model: type[Settings], title: str) -> dict[str, Any]:
    found = {"$schema": DIALECT, **model.model_json_schema(), "title": title}
    _limit_counts(found)
    return found


def _limit_counts(part: Any) -> None:
    """Apply a count's limit to numbers only, since counts may also be text."""
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        _limit_counts(inner)
    if isinstance(part, dict) and "ge" in part and "anyOf" in part:
        part["anyOf"][0]["minimum"] = part.pop("ge")
