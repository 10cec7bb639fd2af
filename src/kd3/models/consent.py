"""Consent for network names that run code, if they come from another person's folder.

A description that its user names as a file is the user's own word, and so is an architecture on the command line. A
folder (a student, a run, a downloaded teacher) may be anybody's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd3.errors import KD3Error
from kd3.models.arch import ArchReference, parse_arch
from kd3.models.sources import SOURCES

CODE = ("file", "module", "torchscript", "torch-export")
REMEDY = "if you trust whoever made it, add --trust-code (in Python: trust_code=True)"


def runs_code(arch: str) -> bool:
    """Return whether building this architecture runs code that is neither kd3's own nor a known library's.

    >>> runs_code("net.py:build"), runs_code("os:system"), runs_code("timm:resnet18")
    (True, True, False)

    Raises:
        KD3Error: it is no architecture.
    """
    return parse_arch(arch).source in CODE


def check_student_arch(arch: str, arch_args: Mapping[str, Any], folder: Path, *, trust_code: bool) -> None:
    """Refuse forbidden names in a student's folder: code without consent, and always files outside the folder.

    Raises:
        KD3Error: it has one; the sentence names it, and the way to allow code.
    """
    where = f"the student in {folder}"
    reference = parse_arch(arch)
    if reference.source == "file":
        _check_inside(reference, arch, folder, where)
    if not trust_code:
        refuse_code(arch, arch_args, where=where, remedy=REMEDY)
        if reference.source == "hf":
            place = (folder / reference.target).resolve()
            if not (place.is_dir() and place.is_relative_to(folder.resolve())):
                raise KD3Error(f"{where} names a configuration outside its folder, {arch!r}; {REMEDY}")


def refuse_code(arch: str, arch_args: Mapping[str, Any], *, where: str, remedy: str) -> None:
    """Refuse an architecture that runs code, or makes a library read files or addresses chosen by its author.

    Raises:
        KD3Error: it does; the message names `where` and the remedy.
    """
    if runs_code(arch):
        raise KD3Error(f"{where} names code, {arch!r}, which would run; {remedy}")
    entry = SOURCES[parse_arch(arch).source]
    for name in (*entry.starts_from, *entry.renames):
        if name in arch_args:
            raise KD3Error(f"{where} has {arch} read what {name!r} in arch_args names; {remedy}")


def _check_inside(reference: ArchReference, arch: str, folder: Path, where: str) -> None:
    inside = Path(reference.target).name == reference.target and "\\" not in reference.target
    if not inside or (folder / reference.target).resolve().parent != folder.resolve():
        raise KD3Error(f"{where} names a file of code outside its folder, {arch!r}; it must lie in the folder itself")
