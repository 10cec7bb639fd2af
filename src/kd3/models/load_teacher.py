"""A trained teacher, from the file that describes it or from the library that knows it, and consent to run code for it.

Consent for network names that run code, if they come from another person's folder. A description that its user names
as a file is the user's own word, and so is an architecture on the command line. A folder (a student, a run, a
downloaded teacher) may be anybody's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from kd3.config.settings import build, read_yaml
from kd3.models.arch import ArchReference, Origin, build_arch, parse_arch
from kd3.models.checkpoint import load_weights
from kd3.models.descriptions import TeacherDescription
from kd3.models.libraries import SOURCES
from kd3.models.libraries.common import Facts
from kd3.models.libraries.saved_networks import file_hash
from kd3.models.preprocessing import turned
from kd3.models.soundness import sound_logits
from kd3.models.teacher import Teacher
from kd3.runtime.errors import KD3Error

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


PRETRAINED = "pretrained"  # the library's own weights
LIKELY = ("mean", "std", "input_size", "colours")  # likely to hold for other weights of the same network
FILES = ("torchscript", "torch-export")  # sources that name one file with the whole network
MODEL_FILES = (".pt", ".pth", ".th", ".safetensors", ".ts", ".pt2")


def load_teacher(path: str | Path, *, trust_code: bool | None = None) -> Teacher:
    """Return the teacher of a description file, or a library's teacher by name.

    Args:
        path: a YAML file, a folder with one, or `timm:NAME`, `torchvision:NAME`, `hf:NAME_OR_FOLDER` for a network that
            its library specifies completely, with weights.
        trust_code: run code that the description names: the architecture's, or a pickle's under `trusted: true`. None:
        yes if the description is named as a file, since that is the user's own choice; no for a folder.

    Raises:
        KD3Error: the description, the architecture or the weights are missing or do not fit, or it names code without
            consent.
    """
    if isinstance(path, nn.Module):
        raise KD3Error(
            f"a live {type(path).__name__} is no description of a teacher; give kd3.Teacher(module, mean=[...], "
            f"std=[...], input_size=...) itself where a teacher is asked for"
        )
    if is_named(path):
        arch, where = str(path), f"teacher {path}"
        weights = PRETRAINED if SOURCES[arch.partition(":")[0]].weights == "asked for" else None
        given: dict[str, Any] = {"arch": arch, "weights": weights}
        facts = _known(given, Path())
        try:
            description = build(TeacherDescription, {**facts.settings, **given}, where=where)
        except KD3Error as problem:
            raise KD3Error(f"{problem}; describe it in a YAML file, as `kd3 inspect --help` shows") from None
        return _loaded(description, Path(), given, facts, where=where)
    path = Path(path)
    if trust_code is None:
        trust_code = not path.is_dir()
    if path.is_dir():
        candidates = sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
        if len(candidates) != 1:
            raise KD3Error(f"{path} is a folder with {len(candidates)} YAML files; name the teacher's own")
        path = candidates[0]
    if path.suffix.lower() in MODEL_FILES and path.is_file():
        raise KD3Error(
            f"{path} holds weights or a network, which is no description of a teacher; write a YAML file that names "
            f"it, as `kd3 inspect --help` shows, and give that"
        )
    given = read_yaml(path, what="teacher description")
    facts = _known(given, path.parent)
    description = build(TeacherDescription, {**facts.settings, **given}, where=str(path))
    if not trust_code:
        _refuse_code(description, path)
    return _loaded(description, path.parent, given, facts, where=str(path))


def _refuse_code(description: TeacherDescription, path: Path) -> None:
    remedy = f"if you trust it, name the description itself ({path}), or add --trust-code (in Python: trust_code=True)"
    refuse_code(description.arch, description.arch_args, where=str(path), remedy=remedy)
    if description.trusted:
        raise KD3Error(f"{path} has its pickle run code (trusted: true); {remedy}")


def is_named(path: str | Path) -> bool:
    """Return whether a teacher is named as a library's network, not as a file."""
    prefix, colon, name = str(path).partition(":")
    return bool(colon and name) and prefix in SOURCES and SOURCES[prefix].is_trained and not Path(path).exists()


def _known(values: Mapping[str, Any], folder: Path) -> Facts:
    """Return a library's facts about its own trained network."""
    arch, arch_args = values.get("arch"), values.get("arch_args") or {}
    if not isinstance(arch, str) or not isinstance(arch_args, Mapping):
        return Facts()
    reference = parse_arch(arch)
    if reference.source not in SOURCES:
        return Facts()
    facts = SOURCES[reference.source].load().facts(reference.target, arch_args, folder=folder)
    if values.get("weights") in (None, PRETRAINED):
        return facts
    # Other weights may have other classes; the input requirements are likely the same.
    return Facts({name: value for name, value in facts.settings.items() if name in LIKELY})


def _loaded(
    description: TeacherDescription, folder: Path, given: Mapping[str, Any], facts: Facts, *, where: str
) -> Teacher:
    module, loaded = _module(description, folder, where=where)
    if description.colours == "bgr":
        classes, output = description.num_classes, description.output
        sound_logits(
            module, description.input_size, what=f"teacher {description.arch}", num_classes=classes, output=output
        )
        module = turned(module, description.input_size, what=where)
    teacher = Teacher(
        module,
        mean=description.mean,
        std=description.std,
        input_size=description.input_size,
        name=description.arch,
        num_classes=description.num_classes,
        output=description.output,
        fit=description.fit,
    )
    if teacher.num_classes != description.num_classes:
        raise KD3Error(
            f"{where} says num_classes: {description.num_classes}, but {description.arch} puts out "
            f"{teacher.num_classes} logits"
        )
    teacher.loaded = loaded
    teacher.origin = Origin(description.arch, description.arch_args, folder)
    teacher.pictures = facts.preparation
    if description.weights not in (None, PRETRAINED):
        teacher.assumed = [name for name in facts.settings if given.get(name) is None]
    teacher.is_turned = description.colours == "bgr"
    teacher.class_names = description.classes
    reference = parse_arch(description.arch)
    if reference.source in FILES and description.weights is None:
        # A frozen program holds its weights in its code, outside the state dict.
        teacher.known_hash = file_hash(reference.target, folder)
    return teacher


def _module(description: TeacherDescription, folder: Path, *, where: str) -> tuple[nn.Module, str]:
    """Return the trained network, and a sentence on its weights."""
    arch, weights = description.arch, description.weights
    reference = parse_arch(arch)
    entry = SOURCES.get(reference.source)
    if weights not in (None, PRETRAINED):
        assert weights is not None
        module = build_arch(
            arch,
            num_classes=description.num_classes,
            arch_args=description.arch_args,
            relative_to=folder,
            input_size=description.input_size,
            channels=len(description.mean),
        )
        loaded = load_weights(
            module,
            folder / weights,
            where=where,
            trusted=description.trusted,
            key=description.weights_key,
            prefix=description.prefix,
        )
        return module, loaded
    if entry is None or entry.weights == "none":
        if weights == PRETRAINED:
            raise KD3Error(f"{arch} comes without weights ({where}); name a file of them under weights")
        raise KD3Error(f"'weights' is missing ({where}); name the checkpoint of {arch}")
    if weights is None and entry.weights == "asked for":
        raise KD3Error(
            f"'weights' is missing ({where}); name the checkpoint of {arch}, or write weights: pretrained for those "
            f"that {reference.source} has itself"
        )
    return entry.load().trained(reference.target, description.arch_args, folder=folder), f"as {arch} has them"
