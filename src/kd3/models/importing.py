"""Imports of a user's file from its own folder, as if it ran as a script."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Attribute of modules beside a user's file: the folder of their import.
_FOLDER_MARK = "__kd3_folder__"
_LEVELS_UP = 4  # searched for a package


@contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    """Let `import` find the modules in a folder."""
    for name, module in list(sys.modules.items()):
        # Otherwise an earlier file's neighbour of the same name, from another folder, would be reused.
        mark = getattr(module, "__dict__", {}).get(_FOLDER_MARK, folder)
        if mark != folder and _lies_in(folder, name):
            del sys.modules[name]
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with suppress(ValueError):  # the file may have tidied up after itself
            sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if _lies_in(folder, name):
                setattr(sys.modules[name], _FOLDER_MARK, folder)


def where_to_find(missing: str, folder: Path) -> str:
    """Return in words the setting that makes a module importable from files in a folder."""
    near = next((place for place in folder.parents[:_LEVELS_UP] if _lies_in(place, missing)), None)
    if near is not None:
        return f"it lies in {near}: set PYTHONPATH={near}"
    return f"put it beside the file, or set PYTHONPATH to the folder that holds {missing.partition('.')[0]!r}"


def _lies_in(folder: Path, module_name: str) -> bool:
    top = module_name.partition(".")[0]
    return (folder / f"{top}.py").is_file() or (folder / top).is_dir()
