"""Reasons for rejecting a file of a crawl: a closed list, so counts by reason mean something."""

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
    "unsafe pickle",  # it asks for code
    "not downloaded",  # the crawler noted that it failed
    "unreachable",  # the network or the server failed, again and again
    "not allowed",  # a row or a list names what a stranger may not name
    "not installed",  # the package that reads its protocol
    "sidecar",  # metadata by its name: skipped and counted, never in rejected.csv
]
REASONS: tuple[str, ...] = get_args(Reason)
SIDECAR: Literal["sidecar"] = "sidecar"
