"""Kinds of settings that several commands have. Free of torch."""

from __future__ import annotations

from typing import Any, Literal

Engine = Literal["local", "ray"]  # where pieces of work are done
Precision = Literal["auto", "32", "bf16", "16"]


def split_commas(value: Any) -> Any:
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


def split_semicolons(value: Any) -> Any:
    return [part.strip() for part in value.split(";") if part.strip()] if isinstance(value, str) else value
