"""What a file's name says about it."""

from __future__ import annotations

SIDECAR_SUFFIXES = (
    ".json", ".jsonl", ".txt", ".csv", ".tsv", ".parquet", ".md", ".xml", ".yaml", ".yml", ".log", ".cls", ".url",
)  # fmt: skip
ARCHIVE_SUFFIXES = {
    ".tar": "tar",
    ".tar.gz": "tar",
    ".tgz": "tar",
    ".tar.bz2": "tar",
    ".tar.xz": "tar",
    ".zip": "zip",
    ".npy": "npy",
    ".npz": "npz",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_ARCHIVE_ENDS = tuple(ARCHIVE_SUFFIXES)
NAME_RULE = (
    "Every regular file is tried as an image, whatever its extension. Skipped and counted are hidden files, "
    "__MACOSX folders and metadata: " + " ".join(SIDECAR_SUFFIXES) + ", tables without images among them. "
    "Archives in a folder ("
    + " ".join(ARCHIVE_SUFFIXES)
    + ", the batches of CIFAR and ImageNet-32) are opened; archives "
    "inside archives are not."
)


def archive_kind(path: str) -> str | None:
    """Return "tar", "zip", "npy", "npz", "parquet" or "arrow" for a name that says so."""
    lower = path[-8:].lower()  # the end will do, and most names end otherwise
    return (
        None
        if not lower.endswith(_ARCHIVE_ENDS)
        else next((kind for suffix, kind in ARCHIVE_SUFFIXES.items() if lower.endswith(suffix)), None)
    )


def is_sidecar(key: str) -> bool:
    """Say whether a path is that of metadata or of something hidden, not of an image.

    >>> is_sidecar("cats/0001.json"), is_sidecar(".thumbnails/0001.jpg"), is_sidecar("./cats/0001")
    (True, True, False)
    """
    return key.lower().endswith(SIDECAR_SUFFIXES) or is_hidden(key)


def is_hidden(key: str) -> bool:
    """Say whether a path is that of something hidden, or in a folder that is."""
    if "/." not in key and "__MACOSX" not in key and not key.startswith("."):
        return False
    return any(part == "__MACOSX" or (part[:1] == "." and part.strip(".")) for part in key.split("/"))
