"""`kd3 export`: write files that run without kd3, each checked against the student."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd3.commands.arguments import as_setting
from kd3.config.commands import ExportConfig
from kd3.config.records import Preparation, places
from kd3.config.run_records import read_summary
from kd3.config.settings import build
from kd3.config.shrink import architecture_in_words
from kd3.exports.card import PREDICT, Card
from kd3.exports.comparison import NOISE, CheckImages, Comparison, Written, images_of, images_of_run, in_batches
from kd3.exports.formats import (
    FOLDER,
    FORMATS,
    Deployable,
    Source,
    run_onnx,
    run_safetensors,
    versions,
    write_safetensors,
)
from kd3.exports.quantise import Tried, quantise
from kd3.models.load_teacher import load_teacher
from kd3.models.student import Student
from kd3.models.student_files import adaptation_of, load_student, read_student_description, student_folder
from kd3.pool import ImagePool
from kd3.pool.pool_files import NAME as MANIFEST
from kd3.runtime import console
from kd3.runtime.compute import threads
from kd3.runtime.errors import KD3Error
from kd3.runtime.files import is_vacant, whole_folder, write_json, write_text
from kd3.runtime.run_folder import RunFolder, find, processor
from kd3.sources.trust import shareable, with_permissions
from kd3.version import __version__

INT8 = "student-int8.onnx"
CARD = "README.md"
REPORT = "export.json"
CASCADE = ("temperature", "threshold", "agreement", "confidence")  # in the metadata, if the student has them


@dataclass(frozen=True)
class _Job:
    student: Student
    folder: Path  # of the student
    images: CheckImages
    module: nn.Module | None  # of a live student


@dataclass(frozen=True)
class Exported:
    """Written files, and their comparison with the student."""

    folder: Path
    files: list[Written]
    images: int
    where: str
    threads: int
    machine: str
    eight_bits: list[Tried]  # the best first; empty if not requested

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {**asdict(self), "folder": str(self.folder)}

    def __str__(self) -> str:
        lines = [f"written to {self.folder}, compared on {self.images:,} {self.where}:"]
        for one in self.files:
            words = f"same class on {one.same_class:.1f}%"
            if one.largest_difference is not None:
                words += f", largest difference {one.largest_difference:.1e}"
            if one.teacher_agreement is not None:
                words += f", agrees with the teacher on {one.teacher_agreement:.1f}%"
            times = ", ".join(f"{value:.2f} ms for {size}" for size, value in one.milliseconds.items())
            lines.append(f"  {one.file:<18} {one.bytes / 1e6:6.2f} MB  {words}; {times}")
        if self.eight_bits:
            lines.append("  8 bits: half that chose, other half")
            lines += [f"    {one.to_choose:5.1f}%  {one.to_report:5.1f}%  {one.variant}" for one in self.eight_bits]
        lines.append(f"  {CARD} tells how to load them; times: {self.machine}, threads: {self.threads}")
        return "\n".join(lines)


@console.quietable
def export(run: str | Path, out: str | Path, *, module: nn.Module | None = None, **settings: Any) -> Exported:
    """Write a run's student in formats that run without kd3.

    `settings` are `quiet=True` and those of `kd3 export --help`: format, int8, preprocessing, images, teacher,
    trust_code, ...

    Args:
        run: a finished run's folder, or a student/ folder.
        out: folder to write; absent or empty.
        module: the untrained backbone, if the student was distilled from a live module.

    Raises:
        KD3Error: the run is not finished, a library is missing, or a file's outputs differ from the student's.
    """
    folders = {
        "run": as_setting(run, what="kd3.export: run", allowed="a run folder or a student/ folder"),
        "out": as_setting(out, what="kd3.export: out", allowed="a folder"),
    }
    config = build(ExportConfig, {**folders, **settings}, where="kd3.export")
    return _export(config, module)


def run(config: ExportConfig) -> Exported:
    """Run the command line's settings."""
    return _export(config, None)


@with_permissions
def _export(config: ExportConfig, module: nn.Module | None) -> Exported:
    out = Path(config.out)
    if not is_vacant(out):
        raise KD3Error(f"{out} is not empty; choose another --out")
    folder = Path(config.run)
    run_folder = RunFolder(folder) if RunFolder(folder).config.is_file() else None
    if run_folder is not None:
        read_summary(folder)  # an unfinished run has no student yet
    of_student = student_folder(folder)
    student = load_student(of_student, module=module, trust_code=config.trust_code)
    images = _images(config, run_folder, student.preparation)
    with whole_folder(out, what=f"the export {out}") as place, threads(config.threads):
        return _write(config, place, out, _Job(student, of_student, images, module))


def _write(config: ExportConfig, place: Path, out: Path, job: _Job) -> Exported:
    student, images = job.student, job.images
    with torch.no_grad():
        expected = in_batches(lambda batch: student(student.normalise(batch)), images.compared)
    compared = Comparison(expected, _teacher_logits(config, student, images.compared), images.where)
    about = read_student_description(job.folder)
    inputs = _prepared(student, images.compared, config.preprocessing)
    source = Source(
        Deployable(student, preprocessing=config.preprocessing),
        job.folder,
        _metadata(about, config.preprocessing, student.cascade),
        inputs[:2].clone(),
        config.opset,
    )
    for name in config.format:
        console.info(f"writing {name}")
        if name == "safetensors":
            write_safetensors(source, place / FOLDER)
            normalised = _prepared(student, images.compared, "outside")
            compared.add(
                place / FOLDER,
                "kd3.load_student",
                run_safetensors(place / FOLDER, job.module, trust_code=config.trust_code),
                normalised,
            )
            continue
        form = FORMATS[name]
        form.write(source, place / form.name)
        compared.add(place / form.name, form.reader, form.run(place / form.name, config.threads), inputs)
    tried: list[Tried] = []
    if config.int8:
        calibrating = _prepared(student, images.calibrating, config.preprocessing)
        tried = _eight_bits(config, place, inputs, expected, calibrating, images.where)
        compared.add(place / INT8, "onnxruntime", run_onnx(place / INT8, config.threads), inputs, exact=False)
    console.info("measuring their latency")
    files, machine = compared.timed(), processor()
    card = Card(
        student=about,
        written=files,
        preprocessing=config.preprocessing,
        images=len(inputs),
        where=images.where,
        threads=config.threads,
        machine=machine,
        date=datetime.now(timezone.utc).date().isoformat(),
        pool=_pool(job.folder),
        adaptation=adaptation_of(job.folder),
        cascade=student.cascade,
        onnx={one.file: versions(str(place / one.file)) for one in files if one.file.endswith(".onnx")},
        variants=[(str(one.variant), one.to_choose, one.to_report) for one in tried],
    )
    write_text(place / CARD, card.text())
    if script := card.script():
        write_text(place / PREDICT, script)
    result = Exported(out, files, len(inputs), images.where, config.threads, machine, tried)
    settings = shareable(config.model_dump(mode="json"))
    write_json(place / REPORT, {"kd3": __version__, "settings": settings, **result.to_dict()})
    return result


def _eight_bits(
    config: ExportConfig, place: Path, inputs: Tensor, expected: Tensor, calibrating: Tensor, where: str
) -> list[Tried]:
    if len(calibrating) < 2:
        raise KD3Error("8 bits are calibrated on images, and there are none; give --images a pool or a folder")
    console.info("writing 8 bits: four ways, calibrated and compared")
    tried = quantise(
        place / FORMATS["onnx"].name, place / INT8, calibrating=calibrating, compared=inputs, float_logits=expected
    )
    if tried[0].to_report < config.min_agreement:
        table = "; ".join(f"{one.variant}: {one.to_report:.1f}%" for one in tried)
        raise KD3Error(
            f"8 bits agree with the student on too few images, under --min-agreement {config.min_agreement:g}: "
            f"{table} (of {len(inputs) - len(inputs) // 2:,} {where}); nothing was written"
        )
    return tried


def _images(config: ExportConfig, run_folder: RunFolder | None, preparation: Preparation) -> CheckImages:
    counts = {"compare": config.check_images, "calibrate": config.calibration_images if config.int8 else 0}
    if config.images is not None:
        found = images_of(config.images, preparation, **counts)
        if config.images == NOISE:
            console.warn("the export is compared on noise; on images it may differ more, or predict other classes")
        return found
    if run_folder is None:
        raise KD3Error(
            f"{config.run} is no run, so no pool is known; name images to check the export on: "
            f"--images POOL_OR_FOLDER, or --images {NOISE} for noise"
        )
    return images_of_run(run_folder, preparation, **counts)


def _teacher_logits(config: ExportConfig, student: Student, images: Tensor) -> Tensor | None:
    if config.teacher is None:
        return None
    teacher = load_teacher(config.teacher, trust_code=config.trust_code or None)
    if teacher.input_size != student.input_size:
        raise KD3Error(
            f"teacher {config.teacher} takes images of {teacher.input_size} pixels but the student of "
            f"{student.input_size}; they do not belong together"
        )
    teacher = teacher.seeing(student.preparation)
    order = places(student.classes, teacher.classes, whose="the student", other=f"teacher {config.teacher}")
    return in_batches(lambda batch: teacher(teacher.normalise(batch)), images)[:, order]


def _prepared(student: Student, images: Tensor, preprocessing: str) -> Tensor:
    return images if preprocessing == "inside" else student.normalise(images)


def _metadata(about: dict[str, Any], preprocessing: str, cascade: Mapping[str, Any] | None) -> dict[str, str]:
    kind = "grey (0.299 R + 0.587 G + 0.114 B)" if len(about["mean"]) == 1 else "RGB"
    takes = "uint8 RGB, NCHW" if preprocessing == "inside" else f"float32 {kind}, NCHW, (x / 255 - mean) / std"
    about_run = about.get("about") or {}
    return {
        "classes": json.dumps(about["classes"], ensure_ascii=False),
        "mean": json.dumps(about["mean"]),
        "std": json.dumps(about["std"]),
        "input_size": str(about["input_size"]),
        "preparation": json.dumps(about.get("preparation")),
        "input": takes,
        "arch": str(architecture_in_words(about)),
        "method": str(about_run.get("method", "")),
        "teacher": Path(str(about_run.get("teacher", ""))).name,
        "kd3": __version__,
        **({} if cascade is None else {name: json.dumps(cascade[name]) for name in CASCADE}),
    }


def _pool(of_student: Path) -> dict[str, Any] | None:
    summary = of_student.parent / "summary.json"
    try:
        place = Path(find(summary.parent, "pool", read_summary(summary.parent)["pool"]))
    except KD3Error:
        return None
    if not (place / MANIFEST).is_file():
        return None
    return {"name": place.name, "images": len(ImagePool.open(place))}
