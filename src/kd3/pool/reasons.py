"""Why a file of a crawl is not in the pool: a closed list, so that counts by reason mean something."""

from typing import Literal, get_args

Reason = Literal[
    "empty",
    "not an image",
    "truncated",
    "too small",
    "too many pixels",
    "unreadable",
    "not a regular file",
    "file too large",
    "archive damaged",
    "encrypted",
    "not downloaded",
    "decoder crashed",
    "sidecar",  # metadata by its name: skipped and counted, never in rejected.csv
]
REASONS: tuple[str, ...] = get_args(Reason)
SIDECAR: Literal["sidecar"] = "sidecar"
