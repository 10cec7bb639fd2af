"""A student on disk, loadable without other files, and any classifier opened from its folder or description."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd3.config.records import Preparation, Signature
from kd3.config.run_records import checked_adaptation
from kd3.config.settings import build
from kd3.config.shrink import ShrinkPlan
from kd3.models.arch import bounded_by, build_arch, parse_arch
from kd3.models.calling import Calling, call_as, calling_of, copy_of
from kd3.models.checkpoint import weights_hash
from kd3.models.descriptions import StudentDescription
from kd3.models.head import Head
from kd3.models.libraries import SOURCES
from kd3.models.load_teacher import check_student_arch, is_named, load_teacher
from kd3.models.projector import build_projector
from kd3.models.shrunk import shrink
from kd3.models.student import Student
from kd3.models.teacher import Teacher
from kd3.runtime import console
from kd3.runtime.errors import KD3Error, in_words
from kd3.runtime.files import read_versioned, refuse_links, replacing, write_json
from kd3.runtime.run_folder import RunFolder

FORMAT = "kd3-student"
VERSION = 2
PLAIN = 1  # version of students that are not shrunken teachers; earlier kd3 can read it
MOST_TIMES_LARGER = 64  # a network before the removal of blocks and channels
WEIGHTS = "model.safetensors"
DESCRIPTION = "config.json"
ADAPTATION = "kd3-adaptation"  # in the weights' metadata
ARCHITECTURE = "architecture"  # folder of a transformers network's configuration
CONFIGURED = f"hf:./{ARCHITECTURE}"


def save_student(
    student: Student,
    folder: Path,
    *,
    arch: str | None,
    arch_args: dict[str, Any],
    about: dict[str, Any],
    shrunk: ShrinkPlan | None = None,
) -> None:
    """Write a student folder: `model.safetensors` and `config.json`.

    `arch` None marks a live module, which must be passed to `load_student` again. If the architecture comes from a code
    file, that file is copied into the folder; its imports must be available on loading. `about` is information for
    people (method, teacher, figures). `shrunk` lists the parts of `arch` that the student lacks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_links(folder, arch)
    if arch is not None and arch.startswith("hf:"):
        arch, arch_args = _bring_configuration(student.backbone, folder), {}
    elif arch is not None:
        entry = SOURCES.get(parse_arch(arch).source)
        # The initial weights no longer matter, and may be remote.
        arch_args = {name: value for name, value in arch_args.items() if entry is None or name not in entry.starts_from}
        arch = _bring_code(arch, folder)
    _save_weights(student, folder / WEIGHTS, metadata=None)
    projector, classifier = student.projector, student.classifier
    description = {
        "format": FORMAT,
        "version": PLAIN if shrunk is None else VERSION,
        "arch": arch,
        "arch_args": arch_args,
        "num_classes": student.num_classes,
        "classes": student.classes,
        "mean": list(student.normalise.mean),
        "std": list(student.normalise.std),
        "input_size": student.input_size,
        "preparation": student.preparation.to_dict(),
        "head": dataclasses.asdict(student.head) if student.head else None,
        "projector": projector and projector.description(),
        "classifier": classifier
        and {
            "in_features": classifier.in_features,
            "out_features": classifier.out_features,
            "bias": classifier.bias is not None,
        },
        "about": about,
    }
    if (calling := calling_of(student)) != Calling():
        description["calling"] = dataclasses.asdict(calling)
    if shrunk is not None:
        description["shrunk"] = shrunk.model_dump()
    write_json(folder / DESCRIPTION, description)


def save_adapted(student: Student, folder: Path, record: dict[str, Any]) -> None:
    """Replace the weights in a student folder, in one move, by those of the student with adapted batch norms.

    The same file holds the record of the adaptation, so the two cannot be mixed up.
    """
    _save_weights(student, folder / WEIGHTS, metadata={ADAPTATION: json.dumps(record, ensure_ascii=False)})


def save_cascade(student: Student, folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Write the cascade's record into a student folder's `config.json`, atomically; return it.

    It is valid for these weights only; `load_student` ignores it after a later adaptation.
    """
    about = read_student_description(folder)
    whole = {"weights": weights_hash(student), **record}
    write_json(folder / DESCRIPTION, {**about, "cascade": whole})
    return whole


def adaptation_of(folder: Path) -> dict[str, Any] | None:
    """Return the record of the adaptation of the student in a student folder; None for an unadapted student.

    Raises:
        KD3Error: the weights are missing, damaged, or a link.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / WEIGHTS
    _refuse_links(folder)
    try:
        with safe_open(path, framework="pt") as weights:
            record = json.loads((weights.metadata() or {}).get(ADAPTATION, "null"))
    except (OSError, SafetensorError, ValueError, RecursionError) as problem:
        raise KD3Error(f"{path} cannot be read as safetensors: {problem}") from None
    return None if record is None else checked_adaptation(record, path)


def copy_student(folder: Path, to: Path) -> None:
    """Copy the files of a student to an existing folder.

    Others stay behind: in a folder of somebody else's they may be links to anything.

    Raises:
        KD3Error: as `read_student_description`.
        OSError: a file is missing.
    """
    for name in _files(read_student_description(folder)["arch"]):
        (to / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / name, to / name)


def _files(arch: str | None) -> list[str]:
    """Return the names of a student's files within its folder."""
    if arch == CONFIGURED:
        return [DESCRIPTION, WEIGHTS, f"{ARCHITECTURE}/config.json"]
    file = (arch or "").rpartition(":")[0]
    return [DESCRIPTION, WEIGHTS, *([file] if file.endswith(".py") and Path(file).name == file else [])]


def _refuse_links(folder: Path, arch: str | None = None) -> None:
    """Refuse links among a student's files, and a run's `student` folder that is one.

    A folder that the user names by another name may be a link: it is the user's own.
    """
    of_run = RunFolder(folder.parent)
    own = [folder] if folder in (of_run.student, of_run.student_as_trained) else []
    refuse_links([*own, folder / ARCHITECTURE, *(folder / name for name in [*_files(arch), *_files(CONFIGURED)])])


def student_folder(path: Path) -> Path:
    """Return the folder of the student at a path: `student` in a run folder, or the path itself."""
    return path / "student" if (path / "student" / DESCRIPTION).is_file() else path


def load_student(path: str | Path, *, module: nn.Module | None = None, trust_code: bool = False) -> Student:
    """Return a distilled student, in evaluation mode, from a `student/` or run folder.

    It needs no other files: normalised images (B, C, H, W) -> logits (B, K); `student.normalise` makes them from uint8
    RGB, also for a grey teacher's student, C = 1.

    Args:
        path: the folder.
        module: the untrained backbone (of a student that is a smaller teacher, the teacher's network); a copy is taken.
        trust_code: run code that the folder brings (`net.py:build`) or names (`package.module:build`). Without it only
            kd3 and its known libraries run. Set it only for folders that you trust.

    Raises:
        KD3Error: the folder is missing, no student's, damaged, written by a newer kd3, or names code without consent.
    """
    folder = student_folder(Path(path))
    about = read_student_description(folder)
    if module is None and about["arch"] is not None:
        check_student_arch(about["arch"], about["arch_args"], folder, trust_code=trust_code)
    what, weights = str(folder / DESCRIPTION), folder / WEIGHTS
    tensors = _read_weights(weights)
    try:
        # Consented code may build without limits.
        size = weights.stat().st_size * _times_larger(about)
        with nullcontext() if trust_code or module is not None else bounded_by(size, what=what):
            return _built(folder, about, tensors, module).eval()
    except (KeyError, TypeError, AttributeError, ValueError) as problem:
        raise KD3Error(f"{what} does not describe a student: {in_words(problem)}") from problem


def _built(folder: Path, about: dict[str, Any], tensors: dict[str, Tensor], module: nn.Module | None) -> Student:
    backbone = copy_of(module) if module is not None else _backbone(folder, about)
    if about.get("shrunk") is not None:
        shrink(backbone.requires_grad_(True), ShrinkPlan.model_validate(about["shrunk"]))
    call_as(backbone, Calling(**about.get("calling", {})))
    head = Head(**about["head"]) if about["head"] else None
    projector = build_projector(**about["projector"]) if about["projector"] else None
    classifier = nn.Linear(**about["classifier"]) if about["classifier"] else None
    student = Student(
        backbone,
        Signature(about["mean"], about["std"], about["input_size"], about["classes"], _preparation(about).fit),
        head=head,
        projector=projector,
        classifier=classifier,
    )
    _load_weights(student, tensors, folder / WEIGHTS)
    if (cascade := about.get("cascade")) is not None:
        if cascade["weights"] == weights_hash(student):
            student.cascade = cascade
        else:
            where = folder / DESCRIPTION
            console.warn(f"the cascade in {where} is of other weights and is ignored; run kd3 cascade again")
    return student


def read_student_description(folder: Path) -> dict[str, Any]:
    """Return a student folder's validated `config.json`.

    Raises:
        KD3Error: it is missing, damaged, no student's, of a newer version, or contradictory; or its files are links.
    """
    path = folder / DESCRIPTION
    _refuse_links(folder)
    if not path.is_file():
        raise KD3Error(f"{folder} holds no student: {DESCRIPTION} is missing")
    values = read_versioned(path, format_name=FORMAT, version=VERSION)
    build(StudentDescription, values, where=f"{path} does not describe a student")
    _refuse_links(folder, values["arch"])
    return values


def _times_larger(about: dict[str, Any]) -> int:
    """Return the size of the network before shrinking, as a multiple of the student's."""
    if about.get("shrunk") is None:
        return 1
    plan = ShrinkPlan.model_validate(about["shrunk"])
    return min(MOST_TIMES_LARGER, math.ceil(plan.parameters_before / plan.parameters))


def _preparation(about: dict[str, Any]) -> Preparation:
    return Preparation.of(about.get("preparation"), size=about["input_size"])


def _backbone(folder: Path, about: dict[str, Any]) -> nn.Module:
    if about["arch"] is None:
        raise KD3Error(
            f"the student in {folder} was distilled from a live module; load it with kd3.load_student(path, module=...)"
        )
    return build_arch(
        about["arch"],
        num_classes=about["num_classes"],
        arch_args=about["arch_args"],
        relative_to=folder,
        input_size=about["input_size"],
        channels=len(about["mean"]),
    )


def _bring_code(arch: str, folder: Path) -> str:
    path, _, function = arch.rpartition(":")
    if not path.endswith(".py"):
        return arch
    source = Path(path).expanduser()
    target = folder / source.name
    if source.resolve() != target.resolve():
        shutil.copyfile(source, target)
    return f"{source.name}:{function}"


def _bring_configuration(backbone: nn.Module, folder: Path) -> str:
    """Write a transformers network's configuration into the folder, so that it loads without other files."""
    place = folder / ARCHITECTURE
    place.mkdir(exist_ok=True)
    backbone.config.to_json_file(place / "config.json", use_diff=False)  # type: ignore[union-attr, operator]
    return CONFIGURED


def _save_weights(student: Student, path: Path, *, metadata: dict[str, str] | None) -> None:
    from safetensors.torch import save_file

    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in student.state_dict().items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def _read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as problem:
        raise KD3Error(f"{path} cannot be read as safetensors: {problem}") from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise KD3Error(f"{path} holds values that are not finite, first in {name!r}")
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise KD3Error(f"{path} holds negative variances, first in {name!r}")
    return tensors


def _load_weights(student: Student, tensors: dict[str, Tensor], path: Path) -> None:
    try:
        student.load_state_dict(tensors)
    except RuntimeError as problem:
        reason = str(problem).splitlines()[-1].strip()
        raise KD3Error(f"{path} does not fit the student that {DESCRIPTION} describes: {reason}") from None


def load_classifier(path: str | Path, *, trust_code: bool = False) -> Teacher | Student:
    """Return the classifier at a path. Both kinds map normalised images to logits.

    `trust_code` lets the folder of a student or a teacher run the code that it names. A description named as a file is
    the user's own and needs no consent.

    Raises:
        KD3Error: there is no classifier, or it is damaged.
    """
    if is_named(path):
        return load_teacher(path)
    path = Path(path)
    if not path.exists():
        raise KD3Error(
            f"model {path} does not exist; give a run folder, a student/ folder or a teacher description (YAML)"
        )
    if path.is_file():
        if path.suffix.lower() not in (".yaml", ".yml"):
            raise KD3Error(f"model {path} is not a folder or a teacher description (.yaml)")
        return load_teacher(path)
    if (student_folder(path) / DESCRIPTION).is_file():
        return load_student(path, trust_code=trust_code)
    if (path / "origin.json").is_file():
        raise KD3Error(f"the run {path} is not finished and has no student yet; continue it with --resume")
    if any(path.glob("*.yaml")) or any(path.glob("*.yml")):
        return load_teacher(path, trust_code=trust_code)
    raise KD3Error(f"{path} holds neither a run, nor a student, nor a teacher description")
