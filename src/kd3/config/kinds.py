"""Kinds of settings that several commands share. Free of torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from kd3.config.settings import parse_count

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
