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
}


def archive_kind(path: str) -> str | None:
    """Return "tar" or "zip" for a name that says so."""
    lower = path.lower()
    return next((kind for suffix, kind in ARCHIVE_SUFFIXES.items() if lower.endswith(suffix)), None)


def is_sidecar(key: str) -> bool:
    """Say whether a name is that of metadata or a hidden file, not of an image."""
    name = key.rsplit("/", 1)[-1]
    return name.startswith(".") or "__MACOSX/" in key or name.lower().endswith(SIDECAR_SUFFIXES)
