"""Kinds of files by name, and the files in a folder and the folders in it."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from typing import Literal

from kd3.sources.record import printable
from kd3.sources.remote import is_http
from kd3.sources.trust import is_flat, is_remote, path_of, written, written_beside

SIDECAR_SUFFIXES = (
    ".json", ".jsonl", ".txt", ".csv", ".tsv", ".parquet", ".md", ".xml", ".yaml", ".yml", ".log", ".cls", ".url",
    "idx1-ubyte", "idx1-ubyte.gz",
)  # fmt: skip
ARCHIVE_SUFFIXES = {
    ".tar": "tar",
    ".tar.gz": "tar",
    ".tgz": "tar",
    ".tar.bz2": "tar",
    ".tar.xz": "tar",
    ".zip": "zip",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".npy": "npy",
    ".npz": "npz",
    "idx3-ubyte": "idx",
    "idx3-ubyte.gz": "idx",
}
LABEL_SUFFIXES = (".cls", ".json", ".csv", ".tsv", ".txt")  # sidecars that may hold labels
LIST_SUFFIXES = (".txt", ".lst", ".csv", ".tsv")
_ARCHIVE_ENDS = tuple(ARCHIVE_SUFFIXES)
LONGEST_END = max(map(len, _ARCHIVE_ENDS))
_BATCH_ENDS = (".pkl", ".pickle", ".meta", ".bin")
# The names of CIFAR-10, CIFAR-100 and of ImageNet in 16, 32 and 64 pixels.
_BATCH_NAME = re.compile(r"(?:train_)?data_batch_\d+|test_batch|val_data|train|test")


def archive_kind(path: str) -> str | None:
    """Return the kind of archive by its name, such as "tar"."""
    lower = _named(path)[-LONGEST_END:].lower()  # the end will do, and most names end otherwise
    return (
        None
        if not lower.endswith(_ARCHIVE_ENDS)
        else next((kind for suffix, kind in ARCHIVE_SUFFIXES.items() if lower.endswith(suffix)), None)
    )


def may_be_batch(path: str) -> bool:
    """Return whether a name may be that of a batch file, so its contents must be checked.

    For remote files, where a check is a request, only the common names qualify.
    """
    name = base_name(path)
    if is_remote(path):
        return _BATCH_NAME.fullmatch(name) is not None or name.lower().endswith(_BATCH_ENDS)
    return "." not in name or name.lower().endswith(_BATCH_ENDS)


def is_list(path: str) -> bool:
    """Return whether a name is that of a list of paths, if given as a source."""
    return _named(path).lower().endswith(LIST_SUFFIXES)


def base_name(path: str) -> str:
    """Return the last part of a path or URL."""
    return os.path.basename(_named(path))


def _named(path: str) -> str:
    """Return the naming part: of a chain of URLs the first with a path, without query and parameters."""
    if not is_remote(path):
        return path
    first = path if is_flat(path) else next((url for url in path.split("::") if "://" in url), path)
    return path_of(first) if is_http(first) else first


def shown(path: str) -> str:
    """Return a path or URL safe to store: encodable text without secrets."""
    return printable(written(path) if is_remote(path) else path)


def shown_beside(path: str, name: str) -> str:
    """Return a name in the list or folder `path` as it may be written down: as `shown`, without secrets."""
    return printable(written_beside(path, name)) if is_http(path) else shown(name)


def is_sidecar(key: str) -> bool:
    """Return whether a path is that of metadata or a hidden file, not of an image.

    >>> is_sidecar("cats/0001.json"), is_sidecar(".thumbnails/0001.jpg"), is_sidecar("./cats/0001")
    (True, True, False)
    """
    return key.lower().endswith(SIDECAR_SUFFIXES) or is_hidden(key)


def may_hold_labels(key: str) -> bool:
    """Return whether a sidecar's name is that of one with labels."""
    return key.lower().endswith(LABEL_SUFFIXES) and not is_hidden(key)


def is_hidden(key: str) -> bool:
    """Return whether a path is hidden."""
    if "/." not in key and "__MACOSX" not in key and not key.startswith("."):
        return False
    return any(part == "__MACOSX" or (part[:1] == "." and part.strip(".")) for part in key.split("/"))


def words_of(name: str) -> list[str]:
    """Return the words and numbers in a name, in small letters.

    >>> words_of("trainImages_64"), words_of("MNIST-test.npz")
    (['train', 'images', '64'], ['mnist', 'test', 'npz'])
    """
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]


Kind = Literal["file", "other", "unreadable", "loop"]


def walk(folder: str) -> Iterator[tuple[str, str, Kind]]:
    """Yield (path, key, kind) of everything below that is no folder, names sorted folder by folder.

    Only the names of the folders on the way down are held, as plain strings. Linked files count as
    files. Linked folders are entered where that leads to something new: one that holds the link ("loop"), or that is
    read at its own place or by another link ("loop", too), is not.
    """
    # A stack of its own: folders may be nested deeper than Python calls.
    entered = {os.path.realpath(folder)}  # the folder, and where the links that were followed lead
    levels = [_names(folder, "")]
    while levels:
        found = next(levels[-1], None)
        if found is None:
            levels.pop()
        elif isinstance(found, _Folder):
            if found.is_link:
                target = os.path.realpath(found.path)
                if _is_known(target, entered) or _holds(target, os.path.realpath(os.path.dirname(found.path))):
                    yield found.path, found.prefix.rstrip("/"), "loop"
                    continue
                entered.add(target)
            levels.append(_names(found.path, found.prefix))
        else:
            yield found


class _Folder:
    def __init__(self, path: str, prefix: str, is_link: bool) -> None:
        self.path, self.prefix, self.is_link = path, prefix, is_link


def _holds(folder: str, path: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _is_known(target: str, entered: set[str]) -> bool:
    """Return whether a folder is read without the link; in a hidden folder it would not be."""
    return any(
        _holds(known, target) and not is_hidden(os.path.relpath(target, known).replace(os.sep, "/"))
        for known in entered
    )


def _names(folder: str, prefix: str) -> Iterator[tuple[str, str, Kind] | _Folder]:
    names: list[str] = []
    folders: set[str] = set()
    links: set[str] = set()
    others: set[str] = set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                names.append(entry.name)
                if _is_folder(entry):
                    folders.add(entry.name)
                    if entry.is_symlink():
                        links.add(entry.name)
                elif not _is_file(entry):
                    others.add(entry.name)
    except OSError:
        yield folder, printable(prefix.rstrip("/")), "unreadable"
    names.sort()
    for name in names:
        path, key = os.path.join(folder, name), prefix + printable(name)
        if name in folders:
            yield _Folder(path, key + "/", name in links)
        else:
            yield path, key, "other" if name in others else "file"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def is_regular(path: str) -> bool:
    """Return whether a path is (or links to) a file with contents of its own: no pipe, device or socket."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False
