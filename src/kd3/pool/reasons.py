"""Reasons for rejecting a file of a crawl: a closed list, so counts by reason mean something."""

from collections.abc import Mapping
from typing import Literal, get_args

Reason = Literal[
    "empty",
    "not an image",
    "needs a plug-in",  # a picture of a kind that Pillow reads with another package
    "truncated",
    "too small",
    "too many pixels",
    "unreadable",
    "not a regular file",
    "file too large",
    "archive damaged",
    "encrypted",
    "decoder crashed",
    "took too long",
    "no images",  # a container of something else, such as an array of floats
    "unsafe pickle",  # it would run code
    "not downloaded",  # the crawler recorded a failure
    "unreachable",  # repeated failures of network or server
    "not allowed",  # a forbidden name in a row or list
    "not installed",  # the package that reads its protocol
    "sidecar",  # metadata by its name: skipped and counted, never in rejected.csv
]
REASONS: tuple[str, ...] = get_args(Reason)
SIDECAR: Literal["sidecar"] = "sidecar"
REMEDIES = {"not allowed": "--trust-entries or --private-hosts allows it"}


def counted(left_out: Mapping[str, int]) -> str:
    """Return files by reason in words, with the flag that allows them.

    >>> counted({"truncated": 2, "not allowed": 1, "sidecar": 4})
    '2 truncated, 1 not allowed (--trust-entries or --private-hosts allows it)'
    """
    return ", ".join(
        f"{count:,} {reason}" + (f" ({REMEDIES[reason]})" if reason in REMEDIES else "")
        for reason, count in left_out.items()
        if count and reason != SIDECAR
    )
